"""Reading a set: by document, by chunk, and as a shuffled stream for training.

Shapes: N rows of a batch, D width of the hook.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from lensae.errors import DamagedError, UserError
from lensae.paths import SetEntry
from lensae.records import StoredDocument
from lensae.store.schema import CHUNK_ROWS
from lensae.store.shard import Shard

WINDOW_CHUNKS = 64


class SetReader:
    """A finished activation set; shards are opened when they are needed."""

    def __init__(self, entry: SetEntry):
        self.entry = entry
        self.width = int(entry.manifest["width"])
        self.shards = entry.manifest["shards"]
        if not entry.rows:
            raise UserError(f"the activation set {entry.name} is empty", "collect into it: python main.py collect")

    @property
    def rows(self) -> int:
        """Rows over all shards."""
        return self.entry.rows

    def path(self, number: int) -> Path:
        """The file of shard `number`."""
        return self.entry.path / "shards" / self.shards[number]["file"]

    def shard(self, number: int) -> Shard:
        """Shard `number`, opened; raises DamagedError when it is missing, cut short or not the one in the manifest."""
        shard = Shard(self.path(number), number)
        if shard.rows != self.shards[number]["rows"]:
            shard.file.close()
            raise DamagedError(f"{shard.path} holds {shard.rows} rows, the manifest says {self.shards[number]['rows']}")
        return shard

    @cached_property
    def documents(self) -> list[list[StoredDocument]]:
        """Every document of every shard (texts and token ids, no activations)."""
        found = []
        for number in range(len(self.shards)):
            with self.shard(number) as shard:
                found.append(shard.documents())
        return found

    def document_rows(self, documents: list[StoredDocument]) -> Iterator[np.ndarray]:
        """The activations (N, D) float32 of each of `documents`, which should be in the order of the set."""
        open_number, shard = -1, None
        try:
            for document in documents:
                if document.shard != open_number:
                    if shard is not None:
                        shard.file.close()
                    open_number, shard = document.shard, self.shard(document.shard)
                yield shard.read("activations", slice(*document.rows)).astype(np.float32)
        finally:
            if shard is not None:
                shard.file.close()

    def chunks(self, number: int) -> Iterator[np.ndarray]:
        """The activations (N, D) float32 of one shard in order, a chunk at a time."""
        with self.shard(number) as shard:
            for start in range(0, shard.rows, CHUNK_ROWS):
                yield shard.read("activations", slice(start, start + CHUNK_ROWS)).astype(np.float32)

    def split(self, fraction: float, seed: int) -> tuple[list[StoredDocument], list[StoredDocument]]:
        """(training, held-out) documents, whole ones: those that share a prompt are never on both sides."""
        documents = [d for shard in self.documents for d in shard if d.rows[1] > d.rows[0]]
        groups = sorted({group_of(d) for d in documents}, key=lambda g: _rank(g, seed))
        held = set(groups[: max(1, round(fraction * len(groups)))]) if len(groups) > 1 else set()
        return [d for d in documents if group_of(d) not in held], [d for d in documents if group_of(d) in held]

    def shuffled(self, documents: list[StoredDocument], batch: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
        """Every row of `documents` once, in batches (N <= batch, D) float32, in an order fixed by seed and epoch.

        Chunks are drawn at random over all shards, 64 at a time, and the rows in that window are shuffled: memory
        does not grow with the set. Only the last batch may be short.
        """
        random = np.random.default_rng([seed, epoch])
        plan = self._plan(documents)
        left = np.empty((0, self.width), np.float32)
        order = random.permutation(len(plan))
        for first in range(0, len(order), WINDOW_CHUNKS):
            window = np.concatenate([left, self._window(plan, sorted(order[first : first + WINDOW_CHUNKS]))])
            window = window[random.permutation(len(window))]
            whole = len(window) - len(window) % batch
            for start in range(0, whole, batch):
                yield window[start : start + batch]
            left = window[whole:]
        if len(left):
            yield left

    def _plan(self, documents: list[StoredDocument]) -> list[tuple[int, int, np.ndarray]]:
        """For each chunk with rows of `documents`: shard, first row, and which of its rows are wanted."""
        wanted: dict[int, np.ndarray] = {}
        for document in documents:
            if document.shard not in wanted:
                wanted[document.shard] = np.zeros(self.shards[document.shard]["rows"], bool)
            wanted[document.shard][slice(*document.rows)] = True
        return [
            (number, start, mask[start : start + CHUNK_ROWS])
            for number, mask in sorted(wanted.items())
            for start in range(0, len(mask), CHUNK_ROWS)
            if mask[start : start + CHUNK_ROWS].any()
        ]

    def _window(self, plan: list, which: list[int]) -> np.ndarray:
        parts, open_number, shard = [], -1, None
        for index in which:
            number, start, mask = plan[index]
            if number != open_number:
                if shard is not None:
                    shard.file.close()
                open_number, shard = number, self.shard(number)
            parts.append(shard.read("activations", slice(start, start + len(mask)))[mask].astype(np.float32))
        shard.file.close()
        return np.concatenate(parts)


def group_of(document: StoredDocument) -> str:
    """What decides the side of the split: the prompt, or for plain text the document itself."""
    return document.prompt or document.text


def _rank(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogatepass")).digest()
