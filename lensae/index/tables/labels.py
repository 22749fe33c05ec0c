"""The labels of the documents in which a feature fires; documents without a label are left out.

There are two tables: one entry per feature and label with sums over documents, and a histogram of the largest
activations per document for each feature and label, from which lensae.index.label_scores tells how well a feature
tells a label from the others.
Shapes: N documents.
"""

from __future__ import annotations

import numpy as np

from lensae.index.ordering import group_starts
from lensae.index.tables._table import Entries, Table

MANTISSA_BITS = 4  # of the 23 that a float32 has
SHIFT = 23 - MANTISSA_BITS
BIN_BITS = 8 + MANTISSA_BITS


def bin_of(value: np.ndarray) -> np.ndarray:
    """The histogram bin (uint16) of positive float32 values: 16 equal bins to every power of two, so that the values
    of one bin differ by less than a sixteenth."""
    return (value.view(np.int32) >> SHIFT).astype(np.uint16)


def build(documents: Entries, code_N: np.ndarray) -> Entries:
    """The labels of one shard, from its table of documents and their labels' numbers."""
    entries = _labelled(documents, code_N)
    count = np.ones(len(entries["label"]), np.uint32)
    names = {"feature": entries["feature"], "label": entries["label"], "documents": count}
    return combine({**names, "sum": entries["sum"], "strongest": entries["max"]})


def build_bins(documents: Entries, code_N: np.ndarray) -> Entries:
    """The histogram of one shard, from its table of documents and their labels' numbers."""
    entries = _labelled(documents, code_N)
    count = np.ones(len(entries["label"]), np.uint32)
    names = {"feature": entries["feature"], "label": entries["label"], "documents": count}
    return combine_bins({**names, "bin": bin_of(entries["max"])})


def _labelled(documents: Entries, code_N: np.ndarray) -> Entries:
    label = code_N[documents["document"]]
    labelled = label >= 0
    return {name: column[labelled] for name, column in {**documents, "label": label}.items()}


def combine(entries: Entries) -> Entries:
    """The labels of several segments, those that are equal added; sums are kept as float64."""
    order = np.argsort((entries["feature"].astype(np.int64) << 32) | entries["label"], kind="stable")
    entries = {name: column[order] for name, column in entries.items()}
    starts = group_starts(entries["feature"], entries["label"])
    if not len(starts):
        return entries
    total = {name: np.add.reduceat(entries[name].astype(np.float64), starts) for name in ("sum", "strongest")}
    keys = {name: entries[name][starts] for name in ("feature", "label")}
    return {**keys, **total, "documents": np.add.reduceat(entries["documents"], starts)}


def combine_bins(entries: Entries) -> Entries:
    """The histograms of several segments, added."""
    label_bits = int(entries["label"].max(initial=0)).bit_length()
    key = ((entries["feature"].astype(np.int64) << label_bits) | entries["label"]) << BIN_BITS | entries["bin"]
    order = np.argsort(key, kind="stable")
    entries = {name: column[order] for name, column in entries.items()}
    starts = group_starts(entries["feature"], entries["label"], entries["bin"])
    if not len(starts):
        return entries
    keys = {name: entries[name][starts] for name in ("feature", "label", "bin")}
    return {**keys, "documents": np.add.reduceat(entries["documents"], starts)}


LABEL_COLUMNS = {"label": np.uint32, "documents": np.uint32, "sum": np.float64, "strongest": np.float64}
TABLE = Table("labels", LABEL_COLUMNS, combine)
BINS_TABLE = Table("label_bins", {"label": np.uint32, "bin": np.uint16, "documents": np.uint32}, combine_bins)
