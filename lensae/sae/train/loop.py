"""The training loop, one for all families, and for one SAE or many on the same stream.

Shapes: B rows, D d_model, F features. Rows reach a trainer multiplied by one factor that gives them a mean norm of
sqrt(D); saving folds it away again. A batch is an array (B, D), or for a transcoder a pair of arrays: what it reads and
what it is to predict, each with a factor of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from lensae.core.memory import keep_freed_memory
from lensae.core.recipe import TrainRecipe
from lensae.sae.base import SAE
from lensae.sae.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lensae.sae.functional import norm_scale
from lensae.sae.metrics.reconstruction import Reconstruction
from lensae.sae.train import checkpoint as state
from lensae.sae.train.run import Measurement, TrainingRun
from lensae.sae.train.schedule import Plan
from lensae.sae.train.validation import Batch, activation_histogram, agreement, tensors, validate_all

Batches = Callable[[int, int], Iterator[Batch]]
SAMPLE_ROWS = 16384


@dataclass
class TrainingResult:
    """What a training came to: the trainer holds the best weights, for rows multiplied by `scales` (the last is the
    targets')."""

    trainer: torch.nn.Module
    scales: tuple[float, ...]
    history: list[Measurement] = field(default_factory=list)
    heldout: Reconstruction | None = None
    stopped: str = "finished"
    seconds: float = 0.0
    activation_histogram: tuple[np.ndarray, int] | None = None  # counts of activations by size, and of zeros
    agreement: float | None = None  # of an encoder in fewer bits (lensae.sae.train.validation.agreement)

    def sae(self, metadata: dict) -> SAE:
        """The trained SAE, for raw activations; where features are divided, of this process's."""
        return self.trainer.sae(self.scales[0], metadata, self.scales[-1])


class Callbacks:
    """What a caller may want to do meanwhile; every method may be left as it is."""

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """A batch was learnt from, by runs with these losses."""

    def measured(self, run: TrainingRun, line: Measurement) -> None:
        """A run was measured on the held-out rows."""

    def stop(self) -> bool:
        """Whether to stop at the next occasion, as if by Ctrl-C."""
        return False


def fit(
    make_trainer: Callable[[int], torch.nn.Module],
    train_rows: Batches,
    heldout_rows: Callable[[], Iterable[Batch]],
    recipe: TrainRecipe,
    plan: Plan,
    callbacks: Callbacks | None = None,
) -> TrainingResult:
    """Train one SAE: `fit_all` of a single run without a checkpoint; raises what its `result` raises."""
    run = TrainingRun(recipe, plan, make_trainer)
    fit_all([run], train_rows, heldout_rows, callbacks)
    return result(run, heldout_rows)


def fit_all(
    runs: list[TrainingRun],
    train_rows: Batches,
    heldout_rows: Callable[[], Iterable[Batch]],
    callbacks: Callbacks | None = None,
    minutes: float = math.inf,
) -> None:
    """Train every run until its plan is done or the held-out rows stop improving; every batch is read once for all.

    `train_rows(epoch, first)` yields the batches of an epoch from number `first` on (of several processes each its own
    rows of them), `heldout_rows()` those that are measured on (the same in all). A run with a checkpoint goes on from
    there; it is written every so many `minutes`, when the training is interrupted and at its end.
    Raises NotFinite for rows that are not finite.
    """
    keep_freed_memory(any_size=True)
    callbacks, group = callbacks or Callbacks(), runs[0].trainer.group
    keeper = _Keeper(runs, minutes, group)
    _start([run for run in runs if not run.scales and not state.load(run)], train_rows, group)
    try:
        while going := [run for run in runs if not run.done]:
            _epoch(going, train_rows, heldout_rows, callbacks, keeper)
    except KeyboardInterrupt:
        if group.is_single:
            keeper.save()
        raise
    keeper.save()


def _start(runs: list[TrainingRun], train_rows: Batches, group: ProcessGroup) -> None:
    if runs:
        with _closing(train_rows(0, 0)) as batches:
            sample = _sample(batches, group)
        for run in runs:
            run.start(sample, tuple(norm_scale(rows_BD, run.recipe.norm_limit) for rows_BD in sample))


def _sample(batches: Iterator[Batch], group: ProcessGroup) -> list[torch.Tensor]:
    parts, rows = [], 0
    for own in group.batches(map(tensors, batches)):
        batch = [group.gather_rows(rows_BD) for rows_BD in own]
        parts.append(batch)
        rows += len(batch[0])
        if rows >= SAMPLE_ROWS:
            break
    return [torch.cat(kind)[:SAMPLE_ROWS] for kind in zip(*parts, strict=True)]


def _epoch(going: list[TrainingRun], train_rows, heldout_rows, callbacks: Callbacks, keeper: _Keeper) -> None:
    """The rest of the first epoch that a run is in, for the runs that are in it."""
    epoch = min(run.state.epoch for run in going)
    here = [run for run in going if run.state.epoch == epoch]
    first, group = min(run.state.batch for run in here), keeper.group
    with _closing(train_rows(epoch, first)) as batches:
        on_device = (tensors(batch, here[0].device) for batch in batches)
        for number, rows in enumerate(group.batches(on_device), first):
            learning = [run for run in here if run.at(epoch, number) and run.state.step < run.plan.steps]
            losses = _learn(learning, rows)
            lines = _validate([run for run in learning if not run.done and run.due], heldout_rows)
            for run in learning:
                run.end_step()
            _notify(callbacks, group.count_rows(len(rows[0])), losses, lines)
            keeper.tick(callbacks)
            if all(run.done or run.state.step >= run.plan.steps for run in here):
                break
    lines = _validate([run for run in here if not run.done and run.state.seen], heldout_rows)
    for run in here:
        run.end_epoch()
        run.end_step()
    _notify(callbacks, 0, [], lines)


def _learn(runs: list[TrainingRun], rows: list[torch.Tensor]) -> list[dict[str, float]]:
    scaled: dict[tuple[float, ...], list[torch.Tensor]] = {}
    losses = []
    for run in runs:
        if run.scales not in scaled:
            scaled[run.scales] = [rows_BD * scale for rows_BD, scale in zip(rows, run.scales, strict=True)]
        losses.append(run.step(scaled[run.scales]))
    return losses


def _validate(runs: list[TrainingRun], heldout_rows) -> list[tuple[TrainingRun, Measurement]]:
    """Measure the runs on the held-out rows."""
    for run in runs:
        run.mid_step = True
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.for_use())
        found = validate_all(runs, heldout_rows()) if runs else []
        return [(run, run.record(*one)) for run, one in zip(runs, found, strict=True)]


def _notify(
    callbacks: Callbacks, rows: int, losses: list[dict[str, float]], lines: list[tuple[TrainingRun, Measurement]]
) -> None:
    if losses:
        callbacks.step(rows, losses)
    for run, line in lines:
        callbacks.measured(run, line)


def result(run: TrainingRun, heldout_rows: Callable[[], Iterable[Batch]]) -> TrainingResult:
    """What a run that is done came to: its best weights, calibrated and measured on all held-out rows.

    Raises LensaeError when nothing is worth keeping. Where rows are divided it is one process's work.
    """
    if run.trainer.group.splits_rows:
        run.trainer.group = SINGLE_PROCESS
    run.check_worth()
    run.mid_step = True
    run.trainer.load_state_dict(run.best)
    run.trainer.eval()
    with run.own_random():
        run.trainer.calibrate(lambda: (tensors(b, run.device)[0] * run.scales[0] for b in heldout_rows()))
    [(found, _loss)] = validate_all([run], heldout_rows())
    fired = activation_histogram(run.trainer, heldout_rows(), *run.scales)
    alike = agreement(run.trainer, heldout_rows(), *run.scales)
    return TrainingResult(
        run.trainer, run.scales, run.state.history, found, run.state.stopped, run.seconds, fired, alike
    )


class _Keeper:
    """Writes the runs' checkpoints when it is time."""

    def __init__(self, runs: list[TrainingRun], minutes: float, group: ProcessGroup):
        self.group = group
        self.runs, self.every = [run for run in runs if run.checkpoint], 60 * minutes
        self.last = time.monotonic()

    def tick(self, callbacks: Callbacks) -> None:
        """Between two steps: raises KeyboardInterrupt when the caller wants to stop."""
        due = self.group.is_first and time.monotonic() - self.last >= self.every
        stop, save = self.group.any(callbacks.stop(), due)
        if save or (stop and not self.group.is_single):
            self.save()
        if stop:
            self.group.barrier()  # nobody ends before it is saved
            raise KeyboardInterrupt

    def save(self) -> None:
        """All that are whole; a run whose weights are no numbers any more keeps its last good checkpoint."""
        for run in self.runs if self.group.is_first or self.group.splits_features else ():
            if not run.mid_step and run.scales and run.finite:
                state.save(run)
        self.last = time.monotonic()


@contextmanager
def _closing(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """Batches whose reader is told when no more are wanted."""
    try:
        yield batches
    finally:
        getattr(batches, "close", lambda: None)()
