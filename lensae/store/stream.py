"""The stream that training reads: every row of a selection once an epoch, shuffled, starting at any batch.

An epoch is one long order of rows: the chunks of all shards are drawn at random and divided into windows of about
`shuffle_rows` rows; the rows of each window are shuffled, the windows follow one another, and batches are cut from the
whole. The order depends on the seed, the epoch and documents/start, so it is known before any activation is read.

Shapes: N rows of a batch, W rows of a window, R rows of a part of a shard, S shards, C chunks, D width of a hook.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from lensae.core.errors import UserError
from lensae.core.prefetch import prefetch
from lensae.store.pairs import check_same_tokens
from lensae.store.reader import Selection, SetReader
from lensae.store.schema import CHUNK_ROWS
from lensae.store.shard import Shard

SHUFFLE_ROWS = 64 * CHUNK_ROWS
PREFETCHED_BATCHES = 2

Batch = np.ndarray | tuple[np.ndarray, np.ndarray]


class RowStream:
    """The rows of `selection` in shuffled batches (N, D) float32, prefetched by threads while a batch is used.

    With `target`, a set that holds the same tokens, batches are pairs: the rows of both sets for the same tokens.

    Several processes share each batch of `batch` rows: the one of `rank` gets its rows `rank::world_size`, so that
    together they see what a single process would; the last batch of an epoch may be short, on some ranks even empty.
    Every rank reads every window.

    Memory: two windows of at most `shuffle_rows` + 1024 rows in the type of the set and four batches, for each set.
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
        self.chunks_C3 = _selected_chunks(reader, selection)
        self.rows = int(self.chunks_C3[:, 2].sum())

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, the same for every rank."""
        return math.ceil(self.rows / self.batch)

    def epoch(self, number: int, first_batch: int = 0) -> Generator[Batch, None, None]:
        """The batches of epoch `number` from `first_batch` (counted from 0) on; rows of earlier windows are not read.

        When the generator is closed or has ended, its threads have ended and its files are closed. An exception in a
        thread is raised here.
        """
        windows = prefetch(self._read_windows(number, first_batch), 1, "window")
        yield from prefetch(self._cut_batches(windows, first_batch), PREFETCHED_BATCHES, "batch")

    def _windows(self, epoch: int) -> list[np.ndarray]:
        """The chunks (C, 3) of each window of an epoch: drawn at random for windows of like size, then sorted."""
        chunks_C3 = self.chunks_C3[np.random.default_rng([self.seed, epoch]).permutation(len(self.chunks_C3))]
        rows_before_C = np.cumsum(chunks_C3[:, 2]) - chunks_C3[:, 2]
        window_C = rows_before_C * math.ceil(self.rows / self.shuffle_rows) // max(self.rows, 1)
        windows = np.split(chunks_C3, np.flatnonzero(np.diff(window_C)) + 1) if len(chunks_C3) else []
        return [window_C3[np.argsort(window_C3[:, 0])] for window_C3 in windows]

    def _read_windows(self, epoch: int, first_batch: int) -> Iterator[_Window]:
        """The windows of an epoch, beginning with the one in which `first_batch` begins."""
        start = 0
        for number, chunks_C3 in enumerate(self._windows(epoch)):
            rows = int(chunks_C3[:, 2].sum())
            if start + rows > first_batch * self.batch:
                # number + 1, as numpy takes [seed, epoch] and [seed, epoch, 0] for the same seed
                order_W = np.random.default_rng([self.seed, epoch, number + 1]).permutation(rows)
                yield _Window(start, order_W, self._read_rows(chunks_C3))
            start += rows

    def _read_rows(self, chunks_C3: np.ndarray) -> list[np.ndarray]:
        """The selected rows (W, D) of the chunks, of each set, in the order and the type of the set."""
        rows = int(chunks_C3[:, 2].sum())
        arrays = [np.empty((rows, reader.width), reader.entry.manifest.dtype) for reader in self.readers]
        with ExitStack() as stack:
            row_readers = [stack.enter_context(_RowReader(reader)) for reader in self.readers]
            done = 0
            for first, last, count in chunks_C3.tolist():
                selected_R = row_readers[0].selected(first, last, self.selection)
                for row_reader, rows_WD in zip(row_readers, arrays, strict=True):
                    row_reader.read(first, selected_R, rows_WD[done : done + count])
                done += count
        return arrays

    def _cut_batches(self, windows: Generator[_Window, None, None], first_batch: int) -> Iterator[Batch]:
        """This rank's rows of every batch; a batch may lie in several windows."""
        window = None
        try:
            for number in range(first_batch, self.batches_per_epoch):
                first, last = number * self.batch, min((number + 1) * self.batch, self.rows)
                wanted_N = np.arange(first + self.rank, last, self.world_size)
                batch = tuple(np.empty((len(wanted_N), reader.width), np.float32) for reader in self.readers)
                done = 0
                while window is None or window.end < last:
                    done = window.gather(wanted_N, done, batch) if window else 0
                    window = None  # released before the next one is asked for, so that two are in memory, not three
                    window = next(windows)
                window.gather(wanted_N, done, batch)
                yield (batch[0], batch[1]) if len(batch) > 1 else batch[0]
        finally:
            windows.close()


@dataclass(frozen=True)
class _Window:
    """Rows of an epoch from position `start` on: their order (W,), and the rows (W, D) of each set."""

    start: int
    order_W: np.ndarray
    arrays: list[np.ndarray]

    @property
    def end(self) -> int:
        """The position after its last row."""
        return self.start + len(self.order_W)

    def gather(self, wanted_N: np.ndarray, done: int, batch: tuple[np.ndarray, ...]) -> int:
        """Copy the rows at the positions `wanted_N` of the epoch that lie in this window into `batch`.

        `done` of them are in the batch before; returns how many are after. torch, which training has loaded, converts
        float16 to float32 many times faster than numpy.
        """
        import torch

        positions = wanted_N[done : np.searchsorted(wanted_N, self.end)]
        index = torch.from_numpy(self.order_W[positions - self.start])
        for rows_WD, rows_ND in zip(self.arrays, batch, strict=True):
            target = torch.from_numpy(rows_ND[done : done + len(positions)])
            target.copy_(torch.from_numpy(rows_WD).index_select(0, index))
        return done + len(positions)


class _RowReader:
    """Reads rows of a set by their number over all shards, one shard open at a time (a context manager)."""

    def __init__(self, reader: SetReader):
        self.reader, self.first_row_S = reader, _first_rows(reader)
        self.number = -1
        self.shard: Shard | None = None
        self.selected_rows: np.ndarray | None = None

    def __enter__(self) -> _RowReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.shard is not None:
            self.shard.file.close()

    def _open(self, number: int) -> Shard:
        if number != self.number:
            self.__exit__()
            self.shard = self.selected_rows = None
            self.shard, self.number = self.reader.shard(number), number
        assert self.shard is not None
        return self.shard

    def _locate(self, row: int) -> tuple[int, int]:
        """The shard that holds `row`, and the number of that shard's first row."""
        number = int(np.searchsorted(self.first_row_S, row, "right")) - 1
        return number, int(self.first_row_S[number])

    def selected(self, first: int, last: int, selection: Selection) -> np.ndarray:
        """Which of the rows first:last, all of one shard, belong to the selection (R,) bool."""
        number, start = self._locate(first)
        shard = self._open(number)
        if self.selected_rows is None:
            self.selected_rows = _selected_rows(shard, selection.indices[number])
        return self.selected_rows[first - start : last - start]

    def read(self, first: int, selected_R: np.ndarray, out: np.ndarray) -> None:
        """Read the selected ones of the R rows from `first` on, which may lie in several shards, into `out`."""
        while len(selected_R):
            number, start = self._locate(first)
            length = min(len(selected_R), int(self.first_row_S[number + 1]) - first)
            keep, selected_R = selected_R[:length], selected_R[length:]
            count = np.count_nonzero(keep)
            if count:
                rows_RD = self._open(number).read("activations", slice(first - start, first - start + length))
                out[:count] = rows_RD if count == length else rows_RD[keep]
            first, out = first + length, out[count:]


def _first_rows(reader: SetReader) -> np.ndarray:
    """The number of the first row of each shard, and of all rows (S + 1,)."""
    return np.cumsum([0] + [shard.rows for shard in reader.shards])


def _selected_chunks(reader: SetReader, selection: Selection) -> np.ndarray:
    """Every chunk with selected rows (C, 3): first row, last row + 1, selected rows; rows numbered over all shards."""
    chunks = [np.empty((0, 3), np.int64)]
    for number, (index, first_row) in enumerate(zip(selection.indices, _first_rows(reader)[:-1], strict=True)):
        if len(index):
            with reader.shard(number) as shard:
                selected_R = _selected_rows(shard, index)
            first_C = np.arange(0, len(selected_R), CHUNK_ROWS)
            last_C = np.minimum(first_C + CHUNK_ROWS, len(selected_R))
            selected_before = np.concatenate([[0], np.cumsum(selected_R)])
            count_C = selected_before[last_C] - selected_before[first_C]
            chunks.append(np.stack([first_C + first_row, last_C + first_row, count_C], 1)[count_C > 0])
    return np.concatenate(chunks)


def _selected_rows(shard: Shard, index: np.ndarray) -> np.ndarray:
    """Which rows of the shard belong to the documents `index` (R,) bool."""
    selected = np.zeros(shard.n_documents, bool)
    selected[index] = True
    return np.repeat(selected, np.diff(shard.read("documents/start")))
