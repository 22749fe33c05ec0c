"""Merging segments into one, a block of features at a time: memory does not grow with them.

Shapes: F features, C segments; a 1 behind a letter is one more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from lensae.index.file import Column, Segment, create, write_array
from lensae.index.ordering import indptr_of
from lensae.index.tables import TABLES, Entries, Table
from lensae.index.vocabulary import LabelNames, Vocabulary, merge_label_names, merge_vocabularies

BLOCK = 2**20  # entries that are in memory at once, unless one feature has more


def merge(segments: Sequence[Segment], path: Path, source: str) -> None:
    """Write the segment at `path` that is over the rows of `segments`, in their order."""
    rows, documents = (sum(getattr(one, name) for one in segments) for name in ("rows", "documents"))
    with create(path, {"source": source, "rows": rows, "documents": documents}) as file:
        names, codes = merge_label_names([LabelNames.read(one.arrays) for one in segments])
        vocabulary = merge_vocabularies([Vocabulary.read(one.arrays) for one in segments])
        for name, array in {**feature_totals(segments), **names.arrays(), **vocabulary.arrays()}.items():
            write_array(file, name, array)
        for table in TABLES:
            _merge_table(file, segments, table, codes)


def feature_totals(segments: Sequence[Segment]) -> dict[str, np.ndarray]:
    """The figures of each feature that are sums over segments."""
    names = ("features/sum", "features/histogram")
    return {name: sum(one.arrays[name][...] for one in segments) for name in names}


def _merge_table(file: h5py.File, segments: Sequence[Segment], table: Table, codes: Sequence[np.ndarray]) -> None:
    most = sum(int(one.arrays[f"{table.name}/indptr"][-1]) for one in segments)
    columns = {name: Column(file, f"{table.name}/{name}", kind, most) for name, kind in table.columns.items()}
    indptr_parts = [np.zeros(1, np.int64)]
    for first, last, entries in combined_blocks(segments, table, codes):
        for name, column in columns.items():
            column.append(entries[name])
        ends = indptr_of(entries["feature"] - first, last - first)[1:]
        indptr_parts.append(ends + indptr_parts[-1][-1])
    write_array(file, f"{table.name}/indptr", np.concatenate(indptr_parts))


def combined_blocks(
    segments: Sequence[Segment], table: Table, codes: Sequence[np.ndarray]
) -> Iterator[tuple[int, int, Entries]]:
    """The combined entries of a table for features first ... last - 1, block after block: (first, last, entries).

    `codes` has for each segment the new numbers of its labels (merge_label_names).
    """
    indptr_CF1 = np.stack([one.arrays[f"{table.name}/indptr"][...] for one in segments])
    for first, last in _blocks(indptr_CF1.sum(0)):
        yield first, last, table.combine(_entries(segments, table, codes, indptr_CF1[:, first : last + 1], first))


def _blocks(indptr_F1: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of features with about BLOCK entries each."""
    first, features = 0, len(indptr_F1) - 1
    while first < features:
        last = int(np.searchsorted(indptr_F1, indptr_F1[first] + BLOCK, side="right")) - 1
        last = min(max(last, first + 1), features)
        yield first, last
        first = last


def _entries(
    segments: Sequence[Segment], table: Table, codes: Sequence[np.ndarray], indptr_CF1: np.ndarray, first: int
) -> Entries:
    """The entries of some features in all segments, one segment after the other, numbered through all of them."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("feature", *table.columns)}
    offset = {"row": 0, "document": 0}
    for segment, code, indptr_F1 in zip(segments, codes, indptr_CF1, strict=True):
        parts["feature"].append(np.repeat(np.arange(first, first + len(indptr_F1) - 1), np.diff(indptr_F1)))
        for name, kind in table.columns.items():
            column = segment.arrays[f"{table.name}/{name}"][int(indptr_F1[0]) : int(indptr_F1[-1])]
            if name in offset:
                column = column + kind(offset[name])
            parts[name].append(code[column] if name == "label" else column)
        offset = {"row": offset["row"] + segment.rows, "document": offset["document"] + segment.documents}
    return {name: np.concatenate(columns) for name, columns in parts.items()}
