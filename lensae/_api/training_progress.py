"""A training's progress as that of any other stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lensae.stages.train.watcher import Watcher

if TYPE_CHECKING:
    from lensae.core.paths import SetEntry
    from lensae.sae.train.run import Measurement
    from lensae.stages.shared.progress import Progress
    from lensae.stages.train.setup import Training


class TrainingProgress(Watcher):
    """Counts the rows that were learnt from, and says each measurement."""

    def __init__(self, progress: Progress):
        self.progress = progress

    def started(self, entry: SetEntry, trainings: list[Training]) -> None:
        """The plans are made."""
        [training] = trainings
        self.progress.start(f"training {training.name}", training.plan.steps * training.plan.batch, "rows")
        self.progress.advance(training.run.state.tokens)

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """A batch is done."""
        self.progress.advance(rows)

    def measured(self, training: Training, line: Measurement) -> None:
        """The SAE was measured on the held-out rows."""
        figures = f"explained variance {line.explained_variance_typical:.3f}, L0 {line.l0:.1f}"
        self.progress.say(f"{training.name}: {line.tokens:,} tokens, {figures}")

    def indexing(self) -> Progress:
        """The index is built next."""
        return self.progress
