"""Two sets of the same tokens at different hooks: rows with the same number are paired, however the shards are divided.

Shapes: B rows of a batch, D width of the set that is read, O width of the set that is predicted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lensae.core.errors import UserError
from lensae.core.program import command
from lensae.store.reader import Selection, SetReader

TOKEN_COLUMNS = ("token_id", "position", "documents/input_ids", "documents/start", "documents/input_start")


@dataclass(frozen=True)
class Rows:
    """Documents whose rows are read, and the same documents of a target set, whose rows are predicted from them.

    Without a `target` rows are predicted from themselves.
    """

    reader: SetReader
    selection: Selection
    target: tuple[SetReader, Selection] | None = None

    @property
    def width(self) -> int:
        """O, the width of the rows that are predicted."""
        return self.target[0].width if self.target else self.reader.width

    def spread(self, count: int) -> Rows:
        """At most `count` of the documents, evenly over all of them."""
        target = self.target and (self.target[0], self.target[1].spread(count))
        return Rows(self.reader, self.selection.spread(count), target)

    def batches(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What is read (B, D) and what is predicted (B, O), float32, at least `rows` rows at a time."""
        predicted = self.target[0].batches(self.target[1], rows) if self.target else None
        for x_BD in self.reader.batches(self.selection, rows):
            yield x_BD, (next(predicted) if predicted else x_BD)


def check_same_tokens(reader: SetReader, other: SetReader) -> None:
    """Raise UserError unless the two sets hold the same tokens of the same documents in the same order."""
    difference = f"rows: {reader.rows} and {other.rows}" if reader.rows != other.rows else ""
    if not difference:
        digests = zip(TOKEN_COLUMNS, _token_digests(reader), _token_digests(other), strict=True)
        difference = ", ".join(name for name, first, second in digests if first != second)
    if difference:
        model, hooks = reader.entry.manifest.model.name, [r.entry.manifest.hook for r in (reader, other)]
        raise UserError(
            f"{reader.entry.name} and {other.entry.name} do not hold the same tokens ({difference})",
            f"collect both at once: {command(f'collect {model} --hook {hooks[0]} --hook {hooks[1]}')}",
        )


def _token_digests(reader: SetReader) -> list[str]:
    """sha256 of each column over all shards, however they are divided (of the lengths for a column of starts)."""
    digests = [hashlib.sha256() for _ in TOKEN_COLUMNS]
    for number in range(len(reader.shards)):
        with reader.shard(number) as shard:
            for name, digest in zip(TOKEN_COLUMNS, digests, strict=True):
                column = shard.read(name)
                digest.update(np.ascontiguousarray(np.diff(column) if name.endswith("start") else column).data)
    return [digest.hexdigest() for digest in digests]
