"""A segment on disk (schema 1). F features, T rows of the shard, P postings.

indptr (F + 1,) int64, row (P,) int32, value (P,) float32     postings of each feature, falling activation
row_indptr (T + 1,) int64, row_feature (P,) int32, row_value (P,) float32       the same, by row
count (F,) int64, sum (F,) float64, max (F,) float32, histogram (F, BINS) int32     per feature
attrs: schema, shard_sha256, sae_sha256, rows
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from lensae.core.durable import write_file
from lensae.core.errors import DamagedError

SCHEMA = 1
# Bin i of a histogram holds activations from EDGES[i] up to EDGES[i + 1]: steps of a factor sqrt(2), 2^-8 to 2^16.
EDGES = 2.0 ** np.linspace(-8, 16, 49)
BINS = len(EDGES) - 1


@dataclass(frozen=True)
class Postings:
    """Every firing in one shard, by feature and by row."""

    indptr: np.ndarray
    row: np.ndarray
    value: np.ndarray
    row_indptr: np.ndarray
    row_feature: np.ndarray
    row_value: np.ndarray


def invert(rows: int, features: int, row: np.ndarray, feature: np.ndarray, value: np.ndarray) -> Postings:
    """Sort the triples (row, feature, value), given in order of rows, into both views."""
    by_feature = np.lexsort((row, -value, feature))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(feature, minlength=features))]).astype(np.int64)
    row_indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]).astype(np.int64)
    return Postings(
        indptr,
        row[by_feature].astype(np.int32),
        value[by_feature].astype(np.float32),
        row_indptr,
        feature.astype(np.int32),
        value.astype(np.float32),
    )


def histograms(postings: Postings) -> np.ndarray:
    """Counts (F, BINS) of each feature's activations on the log-spaced EDGES; the end bins take what lies outside."""
    features = len(postings.indptr) - 1
    feature = np.repeat(np.arange(features), np.diff(postings.indptr))
    bins = np.clip(np.searchsorted(EDGES, postings.value, side="right") - 1, 0, BINS - 1)
    return np.bincount(feature * BINS + bins, minlength=features * BINS).reshape(features, BINS).astype(np.int32)


def write_segment(path: Path, postings: Postings, attrs: dict) -> None:
    """Write one segment, whole or not at all."""
    count = np.diff(postings.indptr)
    feature = np.repeat(np.arange(len(count)), count)
    largest = np.zeros(len(count), np.float32)
    some = count > 0
    largest[some] = postings.value[postings.indptr[:-1][some]]
    arrays = {
        **vars(postings),
        "count": count.astype(np.int64),
        "sum": np.bincount(feature, weights=postings.value, minlength=len(count)),
        "max": largest,
        "histogram": histograms(postings),
    }
    with h5py.File("segment", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        for name, array in arrays.items():
            chunks = tuple(max(1, min(n, 65536 // max(1, array[0:1].size))) for n in array.shape[:1]) + array.shape[1:]
            file.create_dataset(name, data=array, chunks=chunks, fletcher32=True, track_times=False)
        file.attrs.update({"schema": SCHEMA, **attrs})
        file.flush()
        data = file.id.get_file_image()
    write_file(path, data)


def open_segment(path: Path) -> h5py.File:
    """Open a segment for reading; raises DamagedError naming the file."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DamagedError(f"index segment {path} cannot be read", "build it again: python main.py index") from error
