"""Reading a set in its own order: by document, by batch and by chunk. Memory does not grow with the set.

Shapes: N rows of a batch, D width of the hook, S documents of a shard.
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
    """Some documents of a set: for each shard, their indices in rising order; `rows` is the sum of their rows."""

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
        keep_by_shard = np.split(keep, np.cumsum([len(index) for index in self.indices])[:-1])
        indices = tuple(index[kept] for index, kept in zip(self.indices, keep_by_shard, strict=True))
        return Selection(indices, round(self.rows * int(keep.sum()) / self.documents))


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
        shard, listed = Shard(self.path(number), number), self.shards[number]
        if (shard.rows, shard.n_documents) != (listed.rows, listed.documents):
            shard.file.close()
            holds = f"{shard.rows} rows of {shard.n_documents} documents"
            raise DamagedError(f"{shard.path} holds {holds}, the manifest says {listed.rows} of {listed.documents}")
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
        keys, lengths = self._group_keys(seed)
        groups = np.unique(np.concatenate([key_S[rows_S > 0] for key_S, rows_S in zip(keys, lengths, strict=True)]))
        heldout = max(1, round(fraction * len(groups))) if len(groups) > 1 else 0
        return _split(keys, lengths, int(groups[heldout - 1]) if heldout else -1)

    def split_at(self, limit: int, seed: int) -> Split:
        """The split of the set as it is now with the `limit` of an earlier split.

        A prompt stays on its side when others are added, so documents that were trained on are never held out.
        """
        return _split(*self._group_keys(seed), limit)

    def _group_keys(self, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each shard: the key of each document's group, and how many rows the document has, (S,) each.

        This reads the texts of the whole set: it is for training and evaluation, not for queries.
        """
        keys, lengths = [], []
        for number in range(len(self.shards)):
            with self.shard(number) as shard:
                keys.append(_group_keys_of(shard, seed))
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
        on_side = [(n_S > 0) & ((key_S <= limit) == held_out) for key_S, n_S in zip(keys, lengths, strict=True)]
        rows = sum(int(n_S[mask_S].sum()) for n_S, mask_S in zip(lengths, on_side, strict=True))
        sides.append(Selection(tuple(np.flatnonzero(mask_S) for mask_S in on_side), rows))
    return Split(sides[0], sides[1], limit)


def group_of(prompt: str, text: str) -> str:
    """The text that decides a document's side of the split: its prompt, or for plain text the document itself."""
    return prompt or text


def _group_keys_of(shard: Shard, seed: int) -> np.ndarray:
    """A number per document (S,), int64 and at least 0: equal for documents of one group, random otherwise."""
    texts = zip(shard.texts("prompt"), shard.texts("text"), strict=True)
    key_S = np.empty(shard.n_documents, np.int64)
    for i, (prompt, text) in enumerate(texts):
        digest = hashlib.sha256(f"{seed}\0{group_of(prompt, text)}".encode("utf-8", "surrogatepass")).digest()
        key_S[i] = int.from_bytes(digest[:8], "big") >> 1
    return key_S
