"""What a caller may want to know of a training while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lensae.stages.shared.progress import Progress, Silent

if TYPE_CHECKING:
    from lensae.core.paths import SetEntry
    from lensae.sae.train.run import Measurement
    from lensae.stages.train.setup import Training


class Watcher:
    """Callbacks of a training, in the order in which they are called; every method may be left as it is."""

    def started(self, entry: SetEntry, trainings: list[Training]) -> None:
        """The plans are made; a training that is resumed has a history already."""

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """A batch of `rows` rows is done; `losses` has the parts of the loss for every SAE that learnt from it."""

    def measured(self, training: Training, line: Measurement) -> None:
        """An SAE was measured on held-out rows: a line of metrics.csv."""

    def indexing(self) -> Progress:
        """Every SAE is saved and an index is built next: what receives the progress of that."""
        return Silent()
