"""The tokens on which a feature fires: on how many of their occurrences, and its summed activation there.

Shapes: P firings, T rows of a shard, V different tokens.
"""

from __future__ import annotations

import numpy as np

from lensae.index.ordering import combined_key, group_starts, stable_order
from lensae.index.tables._table import Entries, Firings, ShardColumns, Table


def build(firings: Firings, columns: ShardColumns) -> Entries:
    """The tokens of one shard."""
    token_V, code_T = np.unique(columns.token_id_T, return_inverse=True)
    code_P = code_T.astype(np.int32)[firings.row_P]
    order = stable_order(combined_key(firings.feature_P, code_P, len(token_V)))
    fires = np.ones(len(order), np.uint32)
    entries = {"feature": firings.feature_P[order], "token": token_V[code_P[order]]}
    return _added({**entries, "fires": fires, "sum": firings.value_P[order]})


def combine(entries: Entries) -> Entries:
    """The tokens of several segments, those that are equal added."""
    order = np.argsort((entries["feature"].astype(np.int64) << 32) | entries["token"], kind="stable")
    return _added({name: column[order] for name, column in entries.items()})


def _added(entries: Entries) -> Entries:
    """Entries of the same feature and token as one; they are in this order."""
    starts = group_starts(entries["feature"], entries["token"])
    if not len(starts):
        return entries
    return {
        "feature": entries["feature"][starts],
        "token": entries["token"][starts],
        "fires": np.add.reduceat(entries["fires"], starts),
        "sum": np.add.reduceat(entries["sum"].astype(np.float64), starts).astype(np.float32),
    }


TABLE = Table("tokens", {"token": np.int32, "fires": np.uint32, "sum": np.float32}, combine)
