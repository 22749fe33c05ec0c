"""Every row on which a feature fires, in order of falling activation and then of rows.

Shapes: P firings.
"""

from __future__ import annotations

import numpy as np

from lensae.index.ordering import falling_key, stable_order
from lensae.index.tables._table import Entries, Firings, Table


def build(firings: Firings) -> Entries:
    """The postings of one shard."""
    order = stable_order((firings.feature_P.astype(np.int64) << 31) | falling_key(firings.value_P))
    return {"feature": firings.feature_P[order], "row": firings.row_P[order], "value": firings.value_P[order]}


def falling_order(entries: Entries) -> np.ndarray:
    """The order by feature and falling value of entries whose rows rise where these are equal."""
    key = (entries["feature"].astype(np.int64) << 31) | falling_key(entries["value"])
    return np.argsort(key, kind="stable")  # which is fast here: the entries are runs that are sorted already


def combine(entries: Entries) -> Entries:
    """The postings of several segments, merged."""
    order = falling_order(entries)
    return {name: column[order] for name, column in entries.items()}


TABLE = Table("postings", {"row": np.uint32, "value": np.float32}, combine)
