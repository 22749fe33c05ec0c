"""What an index holds on disk (schema 2).

    index.json                   what the index was made from, and the sha256 of each of its files
    summary.h5                   figures of every feature, label and token over the whole set
    rows/<shard>.h5              by row: which features fire on each row of a shard
    segments/<first>-<last>.h5   by feature: the tables of lensae.index.tables over the shards first ... last

Everything is HDF5 with Fletcher-32 on every chunk; equal content gives equal bytes. F features, T rows, P firings,
V tokens, L labels; tables are compressed sparse rows by feature: <table>/indptr (F + 1,) int64, and columns.
rows:     indptr (T + 1,) int64, feature (P,) int32, value (P,) float32, the features of a row in no order
segment:  the tables, and features/, vocabulary/ and label_names/ as in the summary; rows, documents and labels are
          numbered inside the segment
summary:  features/count, histogram (F, BINS) uint32, sum float64, max float32; features/label int32 (-1: none), share
          and auroc float64, label_documents uint32; vocabulary/token, occurs, text_bytes, text_offsets (V + 1,);
          label_names/documents, rows, text_bytes, text_offsets (L + 1,)
attrs:    schema, source (a sha256 of what the file was made from), rows, documents
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from lensae.core.durable import new_file
from lensae.core.errors import DamagedError
from lensae.core.program import command

SCHEMA = 2
# Bin i of a feature's histogram holds activations from EDGES[i] up to EDGES[i + 1]: steps of a factor sqrt(2), 2^-8 to
# 2^16; the end bins take what lies outside.
EDGES = 2.0 ** np.linspace(-8, 16, 49)
BINS = len(EDGES) - 1
CHUNK = 16_384  # entries of a column that are read and checked at once


@dataclass(frozen=True)
class Segment:
    """A segment, in memory or on disk: its datasets by name, and how many rows and documents it is over."""

    arrays: Mapping
    rows: int
    documents: int


@contextmanager
def create(path: Path, attrs: dict) -> Iterator[h5py.File]:
    """A new index file, there under its name when it is complete."""
    with new_file(path) as partial, h5py.File(partial, "w", libver=("v110", "v110")) as file:
        file.attrs.update({"schema": SCHEMA, **attrs})
        yield file


def write_array(file: h5py.File, name: str, array: np.ndarray) -> None:
    """Write a dataset whose size is known."""
    width = int(np.prod(array.shape[1:], dtype=int))
    rows = min(len(array), max(1, CHUNK // max(1, width)))
    layout = {"chunks": (rows, *array.shape[1:]), "fletcher32": True} if array.size else {}
    file.create_dataset(name, data=array, track_times=False, **layout)


def write_segment(path: Path, segment: Segment, source: str) -> None:
    """Write a segment that is in memory."""
    with create(path, {"source": source, "rows": segment.rows, "documents": segment.documents}) as file:
        for name, array in segment.arrays.items():
            write_array(file, name, array)


class Column:
    """A dataset that is written piece by piece; `most` is what may come at most."""

    def __init__(self, file: h5py.File, name: str, dtype: type, most: int):
        chunks = (max(1, min(CHUNK, most)),)
        self.dataset = file.create_dataset(
            name, (0,), dtype, chunks=chunks, maxshape=(None,), fletcher32=True, track_times=False
        )

    def append(self, array: np.ndarray) -> None:
        """Add `array` at the end."""
        end = len(self.dataset)
        self.dataset.resize((end + len(array),))
        self.dataset[end:] = array


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """An index file for reading; raises DamagedError naming it when it, or what is read of it, cannot be read."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError) as error:
        raise damaged(path) from error


@contextmanager
def open_segment(path: Path) -> Iterator[Segment]:
    """A segment on disk."""
    with open_file(path) as file:
        yield Segment(file, int(file.attrs["rows"]), int(file.attrs["documents"]))


def damaged(path: Path) -> DamagedError:
    """The error for an index file that cannot be read."""
    return DamagedError(f"the index file {path} cannot be read", f"build it again: {command('index')}")


def is_made_from(path: Path, source: str) -> bool:
    """Whether the file at `path` is a whole index file of this schema that was made from `source`."""
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("schema") == SCHEMA and file.attrs.get("source") == source
    except OSError:
        return False
