"""Reading a set in its own order: by document, by batch and by chunk. Memory does not grow with the set.

Shapes: N rows of a batch, D width of the hook.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensae.core.errors import DamagedError, UserError
from lensae.core.paths import SetEntry
from lensae.core.program import command
from lensae.core.records import StoredDocument
from lensae.store.schema import CHUNK_ROWS
from lensae.store.shard import Shard


@dataclass(frozen=True)
class Selection:
    """Some documents of a set: for each shard, their indices in rising order; `rows` is what they come to."""

    indices: tuple[np.ndarray, ...]
    rows: int

    @property
    def documents(self) -> int:
        """How many documents."""
        return sum(len(index) for index in self.indices)

    def spread(self, count: int) -> Selection:
        """At most `count` of the documents, evenly over all of them (`rows` is then an estimate)."""
        if count >= self.documents:
            return self
        keep = np.zeros(self.documents, bool)
        keep[np.linspace(0, self.documents - 1, max(1, count)).round().astype(int)] = True
        parts = np.split(keep, np.cumsum([len(index) for index in self.indices])[:-1])
        chosen = tuple(index[part] for index, part in zip(self.indices, parts, strict=True))
        return Selection(chosen, round(self.rows * int(keep.sum()) / self.documents))


@dataclass(frozen=True)
class Split:
    """Two sides of a set: a document is held out when the number of its prompt is at most `limit`."""

    training: Selection
    heldout: Selection
    limit: int


class SetReader:
    """A finished activation set; shards are opened when they are needed."""

    def __init__(self, entry: SetEntry):
        self.entry = entry
        self.width = int(entry.manifest.width)
        self.shards = entry.manifest.shards
        if not entry.rows:
            raise UserError(f"the activation set {entry.name} is empty", f"collect into it: {command('collect')}")

    @property
    def rows(self) -> int:
        """Rows over all shards."""
        return self.entry.rows

    def path(self, number: int) -> Path:
        """The file of shard `number`."""
        return self.entry.path / "shards" / self.shards[number].file

    def shard(self, number: int) -> Shard:
        """Shard `number`, opened; raises DamagedError when it is missing, cut short or not the one in the manifest."""
        shard = Shard(self.path(number), number)
        if shard.rows != self.shards[number].rows:
            shard.file.close()
            raise DamagedError(f"{shard.path} holds {shard.rows} rows, the manifest says {self.shards[number].rows}")
        return shard

    def everything(self) -> Selection:
        """Every document that has rows."""
        indices = []
        for number in range(len(self.shards)):
            with self.shard(number) as shard:
                indices.append(np.flatnonzero(np.diff(shard.read("documents/start"))))
        return Selection(tuple(indices), self.rows)

    def split(self, fraction: float, seed: int) -> Split:
        """Training and held-out documents, whole ones: those that share a prompt are never on both sides.

        About `fraction` of the prompts are held out, at least one; a set with a single prompt holds out nothing.
        """
        keys, lengths = self._keys(seed)
        groups = np.unique(np.concatenate([key[length > 0] for key, length in zip(keys, lengths, strict=True)]))
        held = max(1, round(fraction * len(groups))) if len(groups) > 1 else 0
        return _split(keys, lengths, int(groups[held - 1]) if held else -1)

    def split_at(self, limit: int, seed: int) -> Split:
        """The split that an earlier one's `limit` means on the set as it is now.

        A prompt stays on its side when others are added, so what was trained on is never among the held out.
        """
        return _split(*self._keys(seed), limit)

    def _keys(self, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each shard: a number per document that stands for its prompt, and how many rows the document has."""
        keys, lengths = [], []
        for number in range(len(self.shards)):
            with self.shard(number) as shard:
                keys.append(_keys(shard, seed))
                lengths.append(np.diff(shard.read("documents/start")))
        return keys, lengths

    def documents(self, selection: Selection) -> Iterator[StoredDocument]:
        """The documents of `selection` (texts and token ids, no activations), in the order of the set."""
        for number, index in enumerate(selection.indices):
            if len(index):
                with self.shard(number) as shard:
                    for i in index:
                        yield shard.document(int(i))

    def document_rows(self, selection: Selection) -> Iterator[np.ndarray]:
        """The activations (N, D) float32 of each document of `selection`, in the order of the set."""
        for number, index in enumerate(selection.indices):
            if len(index):
                with self.shard(number) as shard:
                    start = shard.read("documents/start")
                    for i in index:
                        yield shard.read("activations", slice(start[i], start[i + 1])).astype(np.float32)

    def batches(self, selection: Selection, rows: int) -> Iterator[np.ndarray]:
        """The activations (N, D) of `selection` in order, documents joined into batches of at least `rows` rows."""
        pending: list[np.ndarray] = []
        for array in self.document_rows(selection):
            pending.append(array)
            if sum(len(a) for a in pending) >= rows:
                yield np.concatenate(pending)
                pending = []
        if pending:
            yield np.concatenate(pending)

    def chunks(self, number: int) -> Iterator[np.ndarray]:
        """The activations (N, D) float32 of one shard in order, a chunk at a time."""
        with self.shard(number) as shard:
            for start in range(0, shard.rows, CHUNK_ROWS):
                yield shard.read("activations", slice(start, start + CHUNK_ROWS)).astype(np.float32)


def _split(keys: list[np.ndarray], lengths: list[np.ndarray], limit: int) -> Split:
    sides = []
    for held_out in (False, True):
        chosen = [(n > 0) & ((key <= limit) == held_out) for key, n in zip(keys, lengths, strict=True)]
        rows = sum(int(n[c].sum()) for n, c in zip(lengths, chosen, strict=True))
        sides.append(Selection(tuple(np.flatnonzero(c) for c in chosen), rows))
    return Split(sides[0], sides[1], limit)


def group_of(prompt: str, text: str) -> str:
    """What decides a document's side of the split: its prompt, or for plain text the document itself."""
    return prompt or text


def _keys(shard: Shard, seed: int) -> np.ndarray:
    """A number per document that is the same for the same group and random otherwise (int64, at least 0)."""
    pairs = zip(shard.texts("prompt"), shard.texts("text"), strict=True)
    found = np.empty(shard.n_documents, np.int64)
    for i, (prompt, text) in enumerate(pairs):
        digest = hashlib.sha256(f"{seed}\0{group_of(prompt, text)}".encode("utf-8", "surrogatepass")).digest()
        found[i] = int.from_bytes(digest[:8], "big") >> 1
    return found
