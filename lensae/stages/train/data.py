"""What a training reads: the rows of one set, or pairs of rows from two sets that hold the same tokens.

Shapes: N rows, D d_model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lensae.core.errors import LensaeError, UserError
from lensae.core.paths import SetEntry, find_set
from lensae.core.program import command
from lensae.core.recipe import TrainRecipe
from lensae.store.pairs import check_same_tokens
from lensae.store.reader import Selection, SetReader, Split
from lensae.store.stream import SHUFFLE_ROWS, Batch, RowStream

if TYPE_CHECKING:
    from lensae.sae.distributed.process_group import ProcessGroup

FINAL_ROWS = 2**17  # held-out rows, at most, that a finished training is calibrated and measured on
SAMPLED_FROM = 16  # the rows of a sample are every so many-th of documents that hold at most so many times as many


@dataclass(frozen=True)
class TrainingData:
    """A set split into training and held-out documents; `target` is the set whose rows are predicted, if any."""

    reader: SetReader
    target: SetReader | None
    split: Split
    seed: int

    @property
    def entry(self) -> SetEntry:
        """The set that is read."""
        return self.reader.entry

    @property
    def d_out(self) -> int | None:
        """The width of the target rows."""
        return self.target.width if self.target else None

    def stream(self, recipe: TrainRecipe, batch: int, group: ProcessGroup) -> Callable[[int, int], Iterator[Batch]]:
        """A function of an epoch and a batch number that gives the batches of the epoch from that number on.

        Where processes divide the rows, each gets its own rows of every batch.
        """
        rank, size = (group.rank, group.size) if group.splits_rows else (0, 1)
        window = recipe.shuffle_rows or SHUFFLE_ROWS
        return RowStream(self.reader, self.split.training, batch, self.seed, window, self.target, rank, size).epoch

    def heldout(self, batch: int, rows: int | None = None) -> Callable[[], Iterator[Batch]]:
        """Batches of held-out documents: all of them, or whole ones of about `rows` rows, spread evenly."""
        sides = self._heldout_sides(rows)

        def batches() -> Iterator[Batch]:
            streams = [reader.batches(side, batch) for reader, side in sides]
            return (arrays if len(arrays) > 1 else arrays[0] for arrays in zip(*streams, strict=True))

        return batches

    def heldout_sample(self, batch: int, rows: int) -> list[Batch]:
        """About `rows` held-out rows in batches, kept in memory: every so many-th row of every document, or of some
        documents, spread evenly, where all would be too much to read."""
        sides = self._heldout_sides(SAMPLED_FROM * rows)
        step = max(1, sides[0][1].rows // rows)
        arrays = [_every(reader.document_rows(side), step) for reader, side in sides]
        batches = [slice(start, start + batch) for start in range(0, len(arrays[0]), batch)]
        if self.target:
            return [(arrays[0][span], arrays[1][span]) for span in batches]
        return [arrays[0][span] for span in batches]

    def _heldout_sides(self, rows: int | None) -> list[tuple[SetReader, Selection]]:
        """Each set with its held-out documents: all of them, or whole ones of about `rows` rows, spread evenly."""
        sides = [(self.reader, self.split.heldout)]
        if self.target:
            sides.append((self.target, self.target.split_at(self.split.limit, self.seed).heldout))
        return sides if rows is None else [(reader, _spread(side, rows)) for reader, side in sides]

    def explain_not_finite(self, error: LensaeError) -> LensaeError:
        """The error for rows that are not finite, naming the first of them by shard and row; else `error` itself."""
        for reader in filter(None, (self.reader, self.target)):
            count, first = _not_finite(reader)
            if count:
                what = f"{count:,} rows of {reader.entry.name} are not finite, the first is {first}"
                return LensaeError(
                    what, f"collect it again, or repair it: {command(f'store repair {reader.entry.name}')}"
                )
        return error


def _spread(side: Selection, rows: int) -> Selection:
    return side.spread(math.ceil(side.documents * min(1.0, rows / max(side.rows, 1))))


def _every(documents: Iterator[np.ndarray], step: int) -> np.ndarray:
    """Every `step`-th row over all documents together, from the first on."""
    kept, skip = [], 0
    for rows_ND in documents:
        kept.append(rows_ND[skip::step].copy())
        skip = (skip - len(rows_ND)) % step
    return np.concatenate(kept)


def _not_finite(reader: SetReader) -> tuple[int, str]:
    count, first = 0, ""
    for number in range(len(reader.shards)):
        row = 0
        for rows_ND in reader.chunks(number):
            bad = np.flatnonzero(~np.isfinite(rows_ND).all(1))
            if len(bad) and not first:
                first = f"row {row + bad[0]:,} of shards/{reader.shards[number].file}"
            count, row = count + len(bad), row + len(rows_ND)
    return count, first


def open_data(recipe: TrainRecipe, set_name: str | None) -> TrainingData:
    """The rows that a recipe is trained on; raises UserError when there are too few, or no pairs can be made."""
    reader = SetReader(find_set(set_name))
    target = SetReader(find_set(recipe.target)) if recipe.target else None
    if target:
        check_same_tokens(reader, target)
    split = reader.split(recipe.heldout, recipe.seed)
    if not split.training.documents or not split.heldout.documents:
        documents = split.training.documents + split.heldout.documents
        raise UserError(
            f"{reader.entry.name} has too few documents to hold some out ({documents} with rows)",
            f"collect from at least two prompts: {command('collect')}",
        )
    return TrainingData(reader, target, split, recipe.seed)
