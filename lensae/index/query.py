"""Reading an index: a query touches only what it returns, in a few large files. Nothing here loads torch.

Shapes: F features, V tokens, L labels; a 1 behind a letter is one more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from lensae.core.errors import UserError
from lensae.core.program import command
from lensae.core.records import FeatureStats, LabelScore, Posting
from lensae.index.file import Segment, open_file, open_segment
from lensae.index.manifest import SegmentRange, plan, read_manifest
from lensae.index.tables import Entries, Table, contexts, documents, labels, postings, tokens
from lensae.index.vocabulary import LabelNames, Texts

BLOCK = 64
LEAST_DOCUMENTS = 10  # with a label, in which a feature must fire to be listed by label
CANDIDATES = 20  # features with the largest share of one label, for each that is listed


@dataclass(frozen=True)
class Context:
    """A firing in a context that no stronger one has, and how many rows are in this context."""

    posting: Posting
    copies: int


@dataclass(frozen=True)
class TokenUse:
    """One token under a feature: how often the feature fires on it, of how many times it occurs."""

    token: str
    fires: int
    occurs: int
    mean: float


class Index:
    """The index of one SAE over one set, in `folder`; raises UserError when there is none."""

    def __init__(self, folder: Path):
        manifest = read_manifest(folder)
        if manifest is None:
            raise UserError("the feature index is missing", f"build it with: {command('index')}")
        self.folder, self.manifest, self.features = folder, manifest, manifest.features
        self.rows = sum(manifest.shard_rows)
        self._first_row = np.cumsum([0, *manifest.shard_rows])
        self._ranges = plan(len(manifest.shards))

    def check(self, feature: int) -> None:
        """Raise UserError when there is no such feature."""
        if not 0 <= feature < self.features:
            raise UserError(f"there is no feature {feature}", f"this SAE has features 0 to {self.features - 1}")

    def stats(self, feature: int) -> FeatureStats:
        """One feature's figures."""
        self.check(feature)
        with open_file(self.folder / self.manifest.summary.file) as summary:
            count, total, largest = (summary[f"features/{name}"][feature] for name in ("count", "sum", "max"))
            histogram = tuple(summary["features/histogram"][feature].tolist())
        mean = float(total / count) if count else 0.0
        return FeatureStats(feature, int(count), float(count / self.rows), mean, float(largest), histogram)

    def table(self) -> dict[str, np.ndarray]:
        """Per feature (F,): count, density, mean over firings, max."""
        with open_file(self.folder / self.manifest.summary.file) as summary:
            count, total, largest = (summary[f"features/{name}"][...] for name in ("count", "sum", "max"))
        mean = np.divide(total, count, out=np.zeros(len(count)), where=count > 0)
        return {"count": count, "density": count / self.rows, "mean": mean, "max": largest}

    def ranked(self, sort: str, k: int) -> list[FeatureStats]:
        """The first `k` features by falling `sort` (density, max or mean), those that never fire left out."""
        table = self.table()
        order = np.argsort(-table[sort], kind="stable")[:k]
        names = ("count", "density", "mean", "max")
        return [
            FeatureStats(int(f), **{name: table[name][f].item() for name in names}) for f in order if table["count"][f]
        ]

    def label_scores(self, k: int) -> list[LabelScore]:
        """The `k` features that best tell one label from the others, by falling area under the ROC curve over labelled
        documents (lensae.index.label_scores); none for a set with fewer than two labels.

        They are chosen among the CANDIDATES * k features of the largest share, of those that fire in LEAST_DOCUMENTS.
        """
        with open_file(self.folder / self.manifest.summary.file) as summary:
            names = LabelNames.read(summary).names
            columns = ("label", "share", "auroc", "label_documents")
            label_F, share_F, auroc_F, documents_F = (summary[f"features/{name}"][...] for name in columns)
        if len(names) < 2:
            return []
        chosen = np.flatnonzero(documents_F >= LEAST_DOCUMENTS)
        chosen = chosen[np.argsort(-share_F[chosen], kind="stable")][: CANDIDATES * k]
        chosen = chosen[np.argsort(-auroc_F[chosen], kind="stable")][:k]
        return [
            LabelScore(int(f), names[label_F[f]].decode(), float(share_F[f]), float(auroc_F[f]), int(documents_F[f]))
            for f in chosen
        ]

    def contexts(self, feature: int, k: int) -> list[Context] | None:
        """The `k` strongest firings of `feature` in different contexts; None when the index does not hold so many."""
        self.check(feature)
        pairs = list(self._entries(contexts.TABLE, feature))
        if k > contexts.KEPT and any(len(entries["row"]) == contexts.KEPT for _covered, entries in pairs):
            return None
        rows = [entries["row"].astype(np.int64) + self._first_row[covered.first] for covered, entries in pairs]
        entries = contexts.combine(_joined([{**one, "row": row} for (_c, one), row in zip(pairs, rows, strict=True)]))
        columns = (entries[name][:k].tolist() for name in ("row", "value", "copies"))
        return [Context(self._posting(row, value), copies) for row, value, copies in zip(*columns, strict=True)]

    def tokens(self, feature: int, k: int = 10) -> list[TokenUse]:
        """The `k` tokens with the most summed activation of `feature`."""
        self.check(feature)
        entries = tokens.combine(_joined([one for _covered, one in self._entries(tokens.TABLE, feature)]))
        uses = []
        with open_file(self.folder / self.manifest.summary.file) as summary:
            token_V = summary["vocabulary/token"][...]
            for i in np.argsort(-entries["sum"], kind="stable")[:k]:
                number = int(np.searchsorted(token_V, entries["token"][i]))
                text, fires = Texts.read_one(summary, "vocabulary", number), int(entries["fires"][i])
                occurs = int(summary["vocabulary/occurs"][number])
                uses.append(TokenUse(text, fires, occurs, float(entries["sum"][i]) / fires))
        return uses

    def label_means(self, feature: int) -> list[tuple[str, float]]:
        """The mean activation of `feature` over all tokens of each label, falling; none for a set without labels."""
        self.check(feature)
        with open_file(self.folder / self.manifest.summary.file) as summary:
            names = LabelNames.read(summary)
        total = dict.fromkeys(names.names, 0.0)
        for covered, entries in self._entries(labels.TABLE, feature):
            with self._open(covered) as segment:
                known = LabelNames.read(segment.arrays).names
            for code, mass in zip(entries["label"].tolist(), entries["sum"].tolist(), strict=True):
                total[known[code]] += mass
        pairs = zip(names.names, names.rows_L.tolist(), strict=True)
        means = [(name.decode(), total[name] / rows) for name, rows in pairs if rows]
        return sorted(means, key=lambda item: -item[1])

    def documents(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents in which `feature` fires, numbered through all shards, and its largest activation in each."""
        self.check(feature)
        first, numbers, values = 0, [], []
        for covered, entries in self._entries(documents.TABLE, feature):
            numbers.append(entries["document"].astype(np.int64) + first)
            values.append(entries["max"])
            with self._open(covered) as segment:
                first += segment.documents
        return np.concatenate(numbers), np.concatenate(values)

    def postings(self, feature: int) -> Iterator[Posting]:
        """The firings of `feature` in order of falling activation over all segments, read a block at a time."""
        self.check(feature)
        streams = (self._segment_postings(covered, feature) for covered in self._ranges)
        return heapq.merge(*streams, key=lambda posting: -posting.value)

    def _segment_postings(self, covered: SegmentRange, feature: int) -> Iterator[Posting]:
        with self._open(covered) as segment:
            start, end = segment.arrays["postings/indptr"][feature : feature + 2].tolist()
            for first in range(start, end, BLOCK):
                entries = _read(segment, postings.TABLE, first, min(first + BLOCK, end))
                rows = entries["row"].astype(np.int64) + self._first_row[covered.first]
                for row, value in zip(rows.tolist(), entries["value"].tolist(), strict=True):
                    yield self._posting(row, value)

    def by_row(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The features of each row of shard `number`: where a row's begin and end, the features, their activations."""
        with open_file(self.folder / self.manifest.rows[number].file) as file:
            return file["indptr"][...], file["feature"][...], file["value"][...]

    def _posting(self, row: int, value: float) -> Posting:
        """A row, numbered through all shards, as one of its shard."""
        shard = int(np.searchsorted(self._first_row, row, side="right")) - 1
        return Posting(shard, int(row - self._first_row[shard]), float(value))

    def _open(self, covered: SegmentRange) -> h5py.File:
        return open_segment(self.folder / covered.file)

    def _entries(self, table: Table, feature: int) -> Iterator[tuple[SegmentRange, Entries]]:
        """The entries of one feature in each segment, in order of shards."""
        for covered in self._ranges:
            with self._open(covered) as segment:
                start, end = segment.arrays[f"{table.name}/indptr"][feature : feature + 2].tolist()
                yield covered, _read(segment, table, start, end)


def _read(segment: Segment, table: Table, start: int, end: int) -> Entries:
    columns = {name: segment.arrays[f"{table.name}/{name}"][start:end] for name in table.columns}
    return {"feature": np.zeros(end - start, np.int32), **columns}


def _joined(parts: list[Entries]) -> Entries:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
