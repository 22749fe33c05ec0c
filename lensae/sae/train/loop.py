"""The training loop, one for all families, and for one SAE or many on the same stream.

Shapes: B rows, D d_model. Rows reach a trainer multiplied by one factor that gives them a mean norm of sqrt(D); saving
folds it away again. A batch is an array (B, D), or for a transcoder a pair of arrays: what it reads and what it is to
predict, each with a factor of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from lensae.core.memory import keep_freed_memory
from lensae.core.recipe import TrainRecipe
from lensae.sae.base import SAE
from lensae.sae.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lensae.sae.functional import norm_scale
from lensae.sae.metrics.reconstruction import Reconstruction
from lensae.sae.train import checkpoint
from lensae.sae.train.run import Measurement, TrainingRun
from lensae.sae.train.schedule import Plan
from lensae.sae.train.validation import Batch, measure, tensors, validate_all

if TYPE_CHECKING:
    from lensae.sae.architectures._base import BaseTrainer


Batches = Callable[[int, int], Iterator[Batch]]
HeldoutRows = Callable[[], Iterable[Batch]]
SAMPLE_ROWS = 16384  # of the training rows, for the analytic start


@dataclass
class TrainingResult:
    """A finished training: the trainer holds the best weights, for rows multiplied by `scales` (the last is the
    targets'); `heldout`, `activation_histogram` and `agreement` are those of validation.FinalFigures."""

    trainer: BaseTrainer
    scales: tuple[float, ...]
    heldout: Reconstruction
    activation_histogram: tuple[np.ndarray, int]
    history: list[Measurement] = field(default_factory=list)
    stopped: str = "finished"
    seconds: float = 0.0
    agreement: float | None = None

    def sae(self, metadata: dict) -> SAE:
        """The trained SAE, for raw activations; where features are divided, that of this process's features."""
        return self.trainer.sae(self.scales[0], metadata, self.scales[-1])


class Callbacks(Protocol):
    """What a caller may want to do during a training; NoCallbacks has all of them."""

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """A batch was learnt from, by runs with these losses."""

    def measured(self, run: TrainingRun, line: Measurement) -> None:
        """A run was measured on the held-out rows."""

    def stop(self) -> bool:
        """Whether to stop at the next occasion, as if by Ctrl-C."""
        ...


class NoCallbacks:
    """Nothing is to be done during a training."""

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """Nothing."""

    def measured(self, run: TrainingRun, line: Measurement) -> None:
        """Nothing."""

    def stop(self) -> bool:
        """Never."""
        return False


def fit(
    make_trainer: Callable[[int], BaseTrainer],
    train_rows: Batches,
    heldout_rows: HeldoutRows,
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
    heldout_rows: HeldoutRows,
    callbacks: Callbacks | None = None,
    minutes: float = math.inf,
) -> None:
    """Train every run until its plan is done or the held-out rows stop improving; every batch is read once for all.

    `train_rows(epoch, first)` yields the batches of an epoch from number `first` on (each of several processes gets its
    own rows of them), `heldout_rows()` those that are measured on (the same in all). A run with a checkpoint resumes
    from it; it is written every so many `minutes`, when the training is interrupted and at its end.
    Raises NotFinite for rows that are not finite.
    """
    keep_freed_memory(any_size=True)
    callbacks, group = callbacks or NoCallbacks(), runs[0].trainer.group
    checkpoints = _Checkpoints(runs, minutes, group)
    with _Stream(train_rows) as stream:
        _start([run for run in runs if not run.scales and not checkpoint.load(run)], stream, group)
        try:
            while unfinished := [run for run in runs if not run.done]:
                _epoch(unfinished, stream, heldout_rows, callbacks, checkpoints)
        except KeyboardInterrupt:
            if group.is_single:
                checkpoints.save()
            raise
    checkpoints.save()


def result(run: TrainingRun, heldout_rows: HeldoutRows) -> TrainingResult:
    """The best weights of a run that is done, calibrated and measured on held-out rows.

    Raises LensaeError when nothing is worth keeping. Where rows are divided it is one process's work.
    """
    if run.trainer.group.splits_rows:
        run.trainer.group = SINGLE_PROCESS
    run.check_worth()
    run.mid_step = True
    assert run.best is not None, "check_worth raises where there is nothing"
    run.trainer.load_state_dict(run.best)
    run.trainer.eval()
    with run.own_random():
        run.trainer.calibrate(lambda: (tensors(b, run.device)[0] * run.scales[0] for b in heldout_rows()))
    figures = measure(run.trainer, heldout_rows(), *run.scales)
    return TrainingResult(
        trainer=run.trainer,
        scales=run.scales,
        heldout=figures.reconstruction,
        history=run.state.history,
        stopped=run.state.stopped,
        seconds=run.seconds,
        activation_histogram=figures.activation_histogram,
        agreement=figures.agreement,
    )


def _start(runs: list[TrainingRun], stream: _Stream, group: ProcessGroup) -> None:
    if runs:
        sample = _sample(stream.beginning(), group)
        for run in runs:
            run.start(sample, tuple(norm_scale(rows_BD, run.recipe.norm_limit) for rows_BD in sample))


def _sample(batches: Iterator[Batch], group: ProcessGroup) -> list[torch.Tensor]:
    sampled, rows = [], 0
    for own in group.batches(map(tensors, batches)):
        batch = [group.gather_rows(rows_BD) for rows_BD in own]
        sampled.append(batch)
        rows += len(batch[0])
        if rows >= SAMPLE_ROWS:
            break
    return [torch.cat(side)[:SAMPLE_ROWS] for side in zip(*sampled, strict=True)]


def _epoch(
    unfinished: list[TrainingRun],
    stream: _Stream,
    heldout_rows: HeldoutRows,
    callbacks: Callbacks,
    checkpoints: _Checkpoints,
) -> None:
    """The rest of the first epoch that a run is in, for the runs that are in it."""
    epoch = min(run.state.epoch for run in unfinished)
    runs = [run for run in unfinished if run.state.epoch == epoch]
    first, group = min(run.state.batch for run in runs), checkpoints.group
    with _closing(stream(epoch, first)) as batches:
        on_device = (tensors(batch, runs[0].device) for batch in batches)
        for number, rows in enumerate(group.batches(on_device), first):
            learning = [run for run in runs if run.at(epoch, number) and run.state.step < run.plan.steps]
            losses = _learn(learning, rows)
            lines = _validate([run for run in learning if not run.done and run.due], heldout_rows)
            for run in learning:
                run.end_step()
            _notify(callbacks, group.count_rows(len(rows[0])), losses, lines)
            checkpoints.tick(callbacks)
            if all(run.done or run.state.step >= run.plan.steps for run in runs):
                break
    lines = _validate([run for run in runs if not run.done and run.state.seen], heldout_rows)
    for run in runs:
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


def _validate(runs: list[TrainingRun], heldout_rows: HeldoutRows) -> list[tuple[TrainingRun, Measurement]]:
    """Measure the runs on the held-out rows."""
    for run in runs:
        run.mid_step = True
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.for_use())
        figures = validate_all(runs, heldout_rows()) if runs else []
        return [(run, run.record(*one)) for run, one in zip(runs, figures, strict=True)]


def _notify(
    callbacks: Callbacks, rows: int, losses: list[dict[str, float]], lines: list[tuple[TrainingRun, Measurement]]
) -> None:
    if losses:
        callbacks.step(rows, losses)
    for run, line in lines:
        callbacks.measured(run, line)


class _Checkpoints:
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
            self.group.barrier()  # no process ends before all have saved
            raise KeyboardInterrupt

    def save(self) -> None:
        """All that are whole; a run whose weights are no longer numbers keeps its last good checkpoint."""
        for run in self.runs if self.group.is_first or self.group.splits_features else ():
            if not run.mid_step and run.scales and run.finite:
                checkpoint.save(run)
        self.last = time.monotonic()


class _Stream:
    """The training rows; the first batches, which the start and the first epoch both use, are read once."""

    def __init__(self, train_rows: Batches):
        self.train_rows = train_rows
        self.batches: Iterator[Batch] | None = None  # of epoch 0, opened by the start
        self.read: list[Batch] = []

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.batches is not None:
            _close(self.batches)
        self.batches, self.read = None, []

    def beginning(self) -> Iterator[Batch]:
        """The first batches of the first epoch."""
        self.batches = self.train_rows(0, 0)
        while (batch := next(self.batches, None)) is not None:
            self.read.append(batch)
            yield batch

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on."""
        if self.batches is None or (epoch, first) != (0, 0):
            self.__exit__()
            return self.train_rows(epoch, first)
        batches, read = self.batches, self.read
        self.batches, self.read = None, []
        return _continued(read, batches)


def _continued(read: list[Batch], batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches that were read, each let go of when it is given, then the others."""
    try:
        read.reverse()
        while read:
            yield read.pop()
        yield from batches
    finally:
        _close(batches)


@contextmanager
def _closing(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    try:
        yield batches
    finally:
        _close(batches)


def _close(batches: Iterator[Batch]) -> None:
    """Tell the reader of the batches that no more are wanted."""
    getattr(batches, "close", lambda: None)()
