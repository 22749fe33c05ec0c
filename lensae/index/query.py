"""Reading the index: a query touches only the postings it returns. Nothing here loads torch.

Shapes: F features.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lensae.core.errors import UserError
from lensae.core.records import FeatureStats, Posting
from lensae.index.file import open_segment

BLOCK = 64


class Index:
    """The segments of one SAE's index over one set."""

    def __init__(self, folder: Path, shards: list[dict]):
        """`shards` are the manifest's: each must have its segment, made from that very shard."""
        self.folder, self.shards = folder, shards
        missing = [n for n, shard in enumerate(shards) if not is_current(self.segment_path(n), shard)]
        if missing:
            state = "is missing" if len(missing) == len(shards) else f"lacks {len(missing)} of {len(shards)} shards"
            raise UserError(f"the feature index {state}", "build it with: python main.py index")

    def segment_path(self, number: int) -> Path:
        """The file of the segment of shard `number`."""
        return self.folder / self.shards[number].file

    def _column(self, name: str) -> list[np.ndarray]:
        columns = []
        for number in range(len(self.shards)):
            with open_segment(self.segment_path(number)) as segment:
                columns.append(segment[name][...])
        return columns

    @property
    def features(self) -> int:
        """F."""
        with open_segment(self.segment_path(0)) as segment:
            return segment["count"].shape[0]

    def check(self, feature: int) -> None:
        """Raise UserError when there is no such feature."""
        if not 0 <= feature < self.features:
            raise UserError(f"there is no feature {feature}", f"this SAE has features 0 to {self.features - 1}")

    def postings(self, feature: int) -> Iterator[Posting]:
        """The firings of `feature` in order of falling activation over all segments, read a block at a time."""
        self.check(feature)
        streams = (self._segment_postings(number, feature) for number in range(len(self.shards)))
        return heapq.merge(*streams, key=lambda posting: -posting.value)

    def _segment_postings(self, number: int, feature: int) -> Iterator[Posting]:
        with open_segment(self.segment_path(number)) as segment:
            start, end = (int(v) for v in segment["indptr"][feature : feature + 2])
            for first in range(start, end, BLOCK):
                block = slice(first, min(first + BLOCK, end))
                for row, value in zip(segment["row"][block], segment["value"][block], strict=True):
                    yield Posting(number, int(row), float(value))

    def all_postings(self, feature: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each shard, the rows on which `feature` fires and its activations there."""
        self.check(feature)
        found = []
        for number in range(len(self.shards)):
            with open_segment(self.segment_path(number)) as segment:
                start, end = segment["indptr"][feature : feature + 2]
                found.append((segment["row"][start:end], segment["value"][start:end]))
        return found

    def by_row(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The per-row view of one shard: (row_indptr, feature, value)."""
        with open_segment(self.segment_path(number)) as segment:
            return segment["row_indptr"][...], segment["row_feature"][...], segment["row_value"][...]

    def table(self) -> dict[str, np.ndarray]:
        """Per feature (F,): count, density, mean over firings, max."""
        count = np.sum(self._column("count"), axis=0)
        total = np.sum(self._column("sum"), axis=0)
        rows = sum(shard.rows for shard in self.shards)
        mean = np.divide(total, count, out=np.zeros(len(count)), where=count > 0)
        return {"count": count, "density": count / rows, "mean": mean, "max": np.max(self._column("max"), axis=0)}

    def histogram(self, feature: int) -> np.ndarray:
        """Counts of the feature's activations on `lensae.index.file.EDGES`."""
        self.check(feature)
        counts = 0
        for number in range(len(self.shards)):
            with open_segment(self.segment_path(number)) as segment:
                counts = counts + segment["histogram"][feature].astype(np.int64)
        return counts

    def stats(self, feature: int) -> FeatureStats:
        """One feature's figures."""
        self.check(feature)
        return _record(feature, self.table(), tuple(int(c) for c in self.histogram(feature)))

    def ranked(self, sort: str, k: int) -> list[FeatureStats]:
        """The first `k` features by falling `sort` (density, max or mean), those that never fire left out."""
        table = self.table()
        order = np.argsort(-table[sort], kind="stable")[:k]
        return [_record(int(f), table) for f in order if table["count"][f]]


def _record(feature: int, table: dict[str, np.ndarray], histogram: tuple[int, ...] = ()) -> FeatureStats:
    return FeatureStats(
        feature,
        int(table["count"][feature]),
        float(table["density"][feature]),
        float(table["mean"][feature]),
        float(table["max"][feature]),
        histogram,
    )


def is_current(path: Path, shard: dict) -> bool:
    """Whether the segment at `path` is there and was made from the shard as it is now."""
    if not path.is_file():
        return False
    with open_segment(path) as segment:
        return segment.attrs["shard_sha256"] == shard.sha256
