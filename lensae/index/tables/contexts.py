"""The strongest different contexts in which a feature fires, and how often each was stored.

A context is a token with all that the model read before it: samples of one prompt share those of the prompt, and the
activations there are equal, so that a list of the strongest activations would show one context many times over. As
they are equal, all copies of the strongest contexts are among the strongest entries of their segments, and are counted.
Shapes: T rows, N documents, S input tokens; a 1 behind a letter is one more.
"""

from __future__ import annotations

import numpy as np

from lensae.index.ordering import rank_in_group
from lensae.index.tables._table import Entries, ShardColumns, Table
from lensae.index.tables.postings import falling_order

KEPT = 64  # contexts of each feature


def context_hashes(columns: ShardColumns) -> np.ndarray:
    """A number (T,) uint64 of each row's context: of the input tokens of its document up to the row's own.

    It is the sum of a 64-bit hash of every (token, position), modulo 2^64: other contexts have other sums, but for one
    pair in 2^64.
    """
    length_N = np.diff(columns.input_start_N1)
    position_S = np.arange(len(columns.input_ids_S)) - np.repeat(columns.input_start_N1[:-1], length_N)
    total_S1 = np.zeros(len(columns.input_ids_S) + 1, np.uint64)
    np.cumsum(_mix((columns.input_ids_S.astype(np.uint64) << 32) | position_S.astype(np.uint64)), out=total_S1[1:])
    first_T = columns.input_start_N1[columns.document_T]
    return total_S1[first_T + columns.position_T + 1] - total_S1[first_T]


def _mix(number: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each number: the finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    number = number + np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> 27)) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> 31)


def build(postings: Entries, context_T: np.ndarray) -> Entries:
    """The contexts of one shard, from its postings and the number of each row's context."""
    _context, code_T, count = np.unique(context_T, return_inverse=True, return_counts=True)
    repeated_T = count[code_T] > 1
    entries = {**postings, "copies": np.ones(len(postings["row"]), np.uint32), "context": context_T[postings["row"]]}
    return _strongest(entries, repeated_T[postings["row"]])


def combine(entries: Entries) -> Entries:
    """The contexts of several segments: those that are equal counted together, the strongest kept."""
    order = falling_order(entries)
    entries = {name: column[order] for name, column in entries.items()}
    # Most occur once. Those that do are known without a sort: no other one falls into the same of many buckets.
    buckets = 1 << (4 * len(order)).bit_length()
    bucket = (_keys(entries) & np.uint64(buckets - 1)).astype(np.int64)
    return _strongest(entries, (np.bincount(bucket, minlength=buckets) > 1)[bucket])


def _keys(entries: Entries) -> np.ndarray:
    """A number (uint64) of each pair of a feature and a context."""
    return _mix(entries["feature"].astype(np.uint64)) + entries["context"]


def _strongest(entries: Entries, perhaps_repeated: np.ndarray) -> Entries:
    """The strongest entry of each context of a feature with the copies of all, at most KEPT of each feature.

    The entries are in order of falling value, those that come back as well. Only those that are marked may share a
    context with others.
    """
    copies, keep = entries["copies"].copy(), ~perhaps_repeated
    marked = np.flatnonzero(perhaps_repeated)
    if len(marked):
        key = _keys({name: entries[name][marked] for name in ("feature", "context")})
        order = np.argsort(key)
        starts = np.flatnonzero(np.append(True, key[order[1:]] != key[order[:-1]]))
        first = marked[np.minimum.reduceat(order, starts)]
        copies[first] = np.add.reduceat(copies[marked[order]], starts)
        keep[first] = True
    kept = np.flatnonzero(keep)
    kept = kept[rank_in_group(entries["feature"][kept]) < KEPT]
    return {name: column[kept] for name, column in {**entries, "copies": copies}.items()}


COLUMNS = {"row": np.uint32, "value": np.float32, "copies": np.uint32, "context": np.uint64}
TABLE = Table("contexts", COLUMNS, combine)
