"""What a caller may want to hear of a training as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lensae.core.paths import SetEntry
    from lensae.stages.train.setup import Training


class Watcher:
    """Callbacks of a training; every method may be left as it is."""

    def begins(self, entry: SetEntry, trainings: list[Training]) -> None:
        """The plans are made; a training that goes on has a history already."""

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """A batch is done; the losses of every SAE that learnt from it."""

    def epoch(self, training: Training, line) -> None:
        """An SAE was measured on the held-out rows."""
