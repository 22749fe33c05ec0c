"""The documents in which a feature fires, in order, and its largest and its summed activation in each.

Shapes: P firings, T rows of a shard.
"""

from __future__ import annotations

import numpy as np

from lensae.index.ordering import group_starts
from lensae.index.tables._table import Entries, Firings, ShardColumns, Table


def build(firings: Firings, columns: ShardColumns) -> Entries:
    """The documents of one shard."""
    document = columns.document_T[firings.row_P]
    starts = group_starts(firings.feature_P, document)
    value = firings.value_P
    return {
        "feature": firings.feature_P[starts],
        "document": document[starts],
        "max": np.maximum.reduceat(value, starts) if len(starts) else value,
        "sum": np.add.reduceat(value.astype(np.float64), starts).astype(np.float32) if len(starts) else value,
    }


def combine(entries: Entries) -> Entries:
    """The documents of several segments: a document is in one of them only."""
    order = np.argsort(entries["feature"], kind="stable")
    return {name: column[order] for name, column in entries.items()}


TABLE = Table("documents", {"document": np.uint32, "max": np.float32, "sum": np.float32}, combine)
