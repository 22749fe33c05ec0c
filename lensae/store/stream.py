"""The stream that training reads: every row of a selection once an epoch, shuffled, from any batch on.

An epoch is one long order of rows: the chunks of all shards are drawn at random and fall into windows of about
`shuffle_rows` rows; the rows of a window are shuffled, the windows follow one another, and batches are cut from the
whole. The order depends on the seed, the epoch and what documents/start says, so it is known before anything is read.

Shapes: N rows of a batch, W rows of a window, D width of a hook.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from lensae.core.errors import UserError
from lensae.store.pairs import check_same_tokens
from lensae.store.reader import Selection, SetReader
from lensae.store.schema import CHUNK_ROWS
from lensae.store.shard import Shard

SHUFFLE_ROWS = 64 * CHUNK_ROWS
BATCHES_AHEAD = 2
END = object()

Batch = np.ndarray | tuple[np.ndarray, np.ndarray]


class RowStream:
    """The rows of `selection` in shuffled batches (N, D) float32, read ahead by threads while a batch is used.

    With `target`, a set that holds the same tokens, batches are pairs: the rows of both sets for the same tokens.
    Of each batch of `batch` rows this process gets rows `rank::world_size`, so the processes together see what one
    would; the last batch of an epoch may be short, on some processes even empty. Each rank reads every window.
    Memory: two windows of at most `shuffle_rows` + 1024 rows in the type of the set and four batches, of each set.
    Raises UserError when `target` holds other tokens or a number is out of its range.
    """

    def __init__(
        self,
        reader: SetReader,
        selection: Selection,
        batch: int,
        seed: int,
        shuffle_rows: int = SHUFFLE_ROWS,
        target: SetReader | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch < 1 or shuffle_rows < 1 or not 0 <= rank < world_size:
            given = f"batch {batch}, shuffle_rows {shuffle_rows}, rank {rank} of {world_size}"
            raise UserError(f"no rows can be drawn with {given}", "sizes are 1 or more, a rank is below their number")
        if target is not None:
            check_same_tokens(reader, target)
        self.selection, self.batch, self.seed, self.shuffle_rows = selection, batch, seed, shuffle_rows
        self.readers = (reader,) if target is None else (reader, target)
        self.rank, self.world_size = rank, world_size
        self.chunks = _chunks(reader, selection)
        self.rows = int(self.chunks[:, 2].sum())

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, the same for every rank."""
        return math.ceil(self.rows / self.batch)

    def epoch(self, number: int, first_batch: int = 0) -> Generator[Batch, None, None]:
        """The batches of epoch `number` from `first_batch` (counted from 0) on; what lies before is not read.

        Threads and files are gone when the generator is closed or has ended; what fails in a thread is raised here.
        """
        windows = _ahead(self._read(number, first_batch), 1, "window")
        yield from _ahead(self._cut(windows, first_batch), BATCHES_AHEAD, "batch")

    def _windows(self, epoch: int) -> list[np.ndarray]:
        """The chunks of each window of an epoch: drawn at random for windows of like size, each in the set's order."""
        chunks = self.chunks[np.random.default_rng([self.seed, epoch]).permutation(len(self.chunks))]
        before = np.cumsum(chunks[:, 2]) - chunks[:, 2]
        window = before * math.ceil(self.rows / self.shuffle_rows) // max(self.rows, 1)
        parts = np.split(chunks, np.flatnonzero(np.diff(window)) + 1) if len(chunks) else []
        return [part[np.argsort(part[:, 0])] for part in parts]

    def _read(self, epoch: int, first_batch: int) -> Iterator[_Window]:
        """The windows of an epoch from the one on in which `first_batch` begins."""
        start = 0
        for number, chunks in enumerate(self._windows(epoch)):
            rows = int(chunks[:, 2].sum())
            if start + rows > first_batch * self.batch:
                # number + 1, as numpy takes [seed, epoch] and [seed, epoch, 0] for the same seed
                order = np.random.default_rng([self.seed, epoch, number + 1]).permutation(rows)
                yield _Window(start, order, self._rows(chunks))
            start += rows

    def _rows(self, chunks: np.ndarray) -> list[np.ndarray]:
        """The selected rows (W, D) of `chunks`, of each set, in the order of the set and in its own type."""
        rows = int(chunks[:, 2].sum())
        arrays = [np.empty((rows, r.width), r.entry.manifest.dtype) for r in self.readers]
        with ExitStack() as stack:
            files = [stack.enter_context(_Rows(reader)) for reader in self.readers]
            done = 0
            for first, last, count in chunks.tolist():
                mask = files[0].mask(first, last, self.selection)
                for file, array in zip(files, arrays, strict=True):
                    file.read(first, mask, array[done : done + count])
                done += count
        return arrays

    def _cut(self, windows: Generator, first_batch: int) -> Iterator[Batch]:
        """This rank's part of every batch; a batch may lie in several windows."""
        window = None
        try:
            for number in range(first_batch, self.batches_per_epoch):
                first, last = number * self.batch, min((number + 1) * self.batch, self.rows)
                wanted = np.arange(first + self.rank, last, self.world_size)
                batch = tuple(np.empty((len(wanted), reader.width), np.float32) for reader in self.readers)
                done = 0
                while window is None or window.end < last:
                    done = window.gather(wanted, done, batch) if window else 0
                    window = None  # let go of before the next one is asked for: two are in memory, not three
                    window = next(windows)
                window.gather(wanted, done, batch)
                yield batch if len(batch) > 1 else batch[0]
        finally:
            windows.close()


@dataclass(frozen=True)
class _Window:
    """Rows of an epoch from its place `start` on: their order (W,), and the rows (W, D) of each set."""

    start: int
    order: np.ndarray
    arrays: list[np.ndarray]

    @property
    def end(self) -> int:
        """The place after its last row."""
        return self.start + len(self.order)

    def gather(self, wanted: np.ndarray, done: int, batch: tuple[np.ndarray, ...]) -> int:
        """Put the rows at the places `wanted` of the epoch that are here into `batch`, `done` being there already.

        Returns how many are there now. torch, which whoever trains has loaded, makes float32 of float16 many times
        faster than numpy.
        """
        import torch

        here = wanted[done : np.searchsorted(wanted, self.end)]
        picked = torch.from_numpy(self.order[here - self.start])
        for array, rows in zip(self.arrays, batch, strict=True):
            part = torch.from_numpy(rows[done : done + len(here)])
            part.copy_(torch.from_numpy(array).index_select(0, picked))
        return done + len(here)


class _Rows:
    """The rows of a set by their number over all shards; one shard is open at a time (a context manager)."""

    def __init__(self, reader: SetReader):
        self.reader, self.edges = reader, _edges(reader)
        self.number, self.shard, self.chosen = -1, None, None

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_exc) -> None:
        if self.shard is not None:
            self.shard.file.close()

    def _open(self, number: int) -> Shard:
        if number != self.number:
            self.__exit__()
            self.shard = self.chosen = None
            self.shard, self.number = self.reader.shard(number), number
        return self.shard

    def _place(self, row: int) -> tuple[int, int]:
        """The shard that holds `row`, and its first row."""
        number = int(np.searchsorted(self.edges, row, "right")) - 1
        return number, int(self.edges[number])

    def mask(self, first: int, last: int, selection: Selection) -> np.ndarray:
        """Which of the rows first:last, all of one shard, belong to the selection."""
        number, start = self._place(first)
        shard = self._open(number)
        if self.chosen is None:
            self.chosen = _row_mask(shard, selection.indices[number])
        return self.chosen[first - start : last - start]

    def read(self, first: int, mask: np.ndarray, out: np.ndarray) -> None:
        """The rows from `first` on that `mask` has, into `out`; they may lie in several shards."""
        while len(mask):
            number, start = self._place(first)
            here = min(len(mask), int(self.edges[number + 1]) - first)
            keep, mask = mask[:here], mask[here:]
            count = np.count_nonzero(keep)
            if count:
                rows = self._open(number).read("activations", slice(first - start, first - start + here))
                out[:count] = rows if count == here else rows[keep]
            first, out = first + here, out[count:]


def _edges(reader: SetReader) -> np.ndarray:
    """The number of the first row of each shard, and of all rows."""
    return np.cumsum([0] + [shard.rows for shard in reader.shards])


def _chunks(reader: SetReader, selection: Selection) -> np.ndarray:
    """Every chunk that holds selected rows: (first row, last row + 1, selected rows), rows numbered over all shards."""
    found = [np.empty((0, 3), np.int64)]
    for number, (index, edge) in enumerate(zip(selection.indices, _edges(reader)[:-1], strict=True)):
        if len(index):
            with reader.shard(number) as shard:
                mask = _row_mask(shard, index)
            first = np.arange(0, len(mask), CHUNK_ROWS)
            last = np.minimum(first + CHUNK_ROWS, len(mask))
            counted = np.concatenate([[0], np.cumsum(mask)])
            rows = counted[last] - counted[first]
            found.append(np.stack([first + edge, last + edge, rows], 1)[rows > 0])
    return np.concatenate(found)


def _row_mask(shard: Shard, index: np.ndarray) -> np.ndarray:
    """Which rows of the shard belong to the documents `index`."""
    chosen = np.zeros(shard.n_documents, bool)
    chosen[index] = True
    return np.repeat(chosen, np.diff(shard.read("documents/start")))


def _ahead(items: Generator, count: int, name: str) -> Generator:
    """The same items, `count` of them made in a thread before they are asked for."""
    pool = ThreadPoolExecutor(1, f"lensae-{name}")
    try:
        # one finite call at a time, so there is never a thread that waits for a consumer who has gone
        pending = deque(pool.submit(next, items, END) for _ in range(count))
        while (item := pending.popleft().result()) is not END:
            pending.append(pool.submit(next, items, END))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()
