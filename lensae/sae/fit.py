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

from lensae.allocation import keep_freed_memory
from lensae.recipe import TrainRecipe
from lensae.sae import state
from lensae.sae.base import SAE
from lensae.sae.evaluate import Reconstruction
from lensae.sae.functional import norm_scale
from lensae.sae.lane import Lane, Measured
from lensae.sae.measure import Batch, agreement, measure_all, strengths, tensors
from lensae.sae.plan import Plan
from lensae.sae.world import ALONE, World

Batches = Callable[[int, int], Iterator[Batch]]
SAMPLE_ROWS = 16384


@dataclass
class Fit:
    """What a training came to: the trainer holds the best weights, for rows multiplied by `scales` (the last is the
    targets')."""

    trainer: torch.nn.Module
    scales: tuple[float, ...]
    history: list[Measured] = field(default_factory=list)
    heldout: Reconstruction | None = None
    stopped: str = "finished"
    seconds: float = 0.0
    strengths: tuple[np.ndarray, int] | None = None  # counts of activations by size, and of zeros
    agreement: float | None = None  # of an encoder in fewer bits (lensae.sae.measure.agreement)

    def sae(self, metadata: dict) -> SAE:
        """The trained SAE, for raw activations; where features are divided, of this process's."""
        return self.trainer.sae(self.scales[0], metadata, self.scales[-1])


class Hooks:
    """What a caller may want to do meanwhile; every method may be left as it is."""

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """A batch was learnt from, by lanes with these losses."""

    def measured(self, lane: Lane, line: Measured) -> None:
        """A lane was measured on the held-out rows."""

    def stop(self) -> bool:
        """Whether to stop at the next occasion, as if by Ctrl-C."""
        return False


def fit(
    make_trainer: Callable[[int], torch.nn.Module],
    train_rows: Batches,
    heldout_rows: Callable[[], Iterable[Batch]],
    recipe: TrainRecipe,
    plan: Plan,
    hooks: Hooks | None = None,
) -> Fit:
    """Train one SAE: `fit_all` of a single lane without a checkpoint; raises what its `result` raises."""
    lane = Lane(recipe, plan, make_trainer)
    fit_all([lane], train_rows, heldout_rows, hooks)
    return result(lane, heldout_rows)


def fit_all(
    lanes: list[Lane],
    train_rows: Batches,
    heldout_rows: Callable[[], Iterable[Batch]],
    hooks: Hooks | None = None,
    minutes: float = math.inf,
) -> None:
    """Train every lane until its plan is done or the held-out rows stop improving; every batch is read once for all.

    `train_rows(epoch, first)` yields the batches of an epoch from number `first` on (of several processes each its own
    rows of them), `heldout_rows()` those that are measured on (the same in all). A lane with a checkpoint goes on from
    there; it is written every so many `minutes`, when the training is interrupted and at its end.
    Raises NotFinite for rows that are not finite.
    """
    keep_freed_memory(any_size=True)
    hooks, world = hooks or Hooks(), lanes[0].trainer.world
    keeper = _Keeper(lanes, minutes, world)
    _start([lane for lane in lanes if not lane.scales and not state.load(lane)], train_rows, world)
    try:
        while going := [lane for lane in lanes if not lane.done]:
            _epoch(going, train_rows, heldout_rows, hooks, keeper)
    except KeyboardInterrupt:
        if world.alone:
            keeper.save()
        raise
    keeper.save()


def _start(lanes: list[Lane], train_rows: Batches, world: World) -> None:
    if lanes:
        with _closing(train_rows(0, 0)) as batches:
            sample = _sample(batches, world)
        for lane in lanes:
            lane.start(sample, tuple(norm_scale(rows_BD, lane.recipe.norm_limit) for rows_BD in sample))


def _sample(batches: Iterator[Batch], world: World) -> list[torch.Tensor]:
    parts, rows = [], 0
    for own in world.batches(map(tensors, batches)):
        batch = [world.whole(rows_BD) for rows_BD in own]
        parts.append(batch)
        rows += len(batch[0])
        if rows >= SAMPLE_ROWS:
            break
    return [torch.cat(kind)[:SAMPLE_ROWS] for kind in zip(*parts, strict=True)]


def _epoch(going: list[Lane], train_rows, heldout_rows, hooks: Hooks, keeper: _Keeper) -> None:
    """The rest of the first epoch that a lane is in, for the lanes that are in it."""
    epoch = min(lane.place.epoch for lane in going)
    here = [lane for lane in going if lane.place.epoch == epoch]
    first, world = min(lane.place.batch for lane in here), keeper.world
    with _closing(train_rows(epoch, first)) as batches:
        on_device = (tensors(batch, here[0].device) for batch in batches)
        for number, rows in enumerate(world.batches(on_device), first):
            learning = [lane for lane in here if lane.at(epoch, number) and lane.place.step < lane.plan.steps]
            losses = _learn(learning, rows)
            lines = _look([lane for lane in learning if not lane.done and lane.due], heldout_rows)
            for lane in learning:
                lane.settle()
            _tell(hooks, world.rows(len(rows[0])), losses, lines)
            keeper.tick(hooks)
            if all(lane.done or lane.place.step >= lane.plan.steps for lane in here):
                break
    lines = _look([lane for lane in here if not lane.done and lane.place.seen], heldout_rows)
    for lane in here:
        lane.turn()
        lane.settle()
    _tell(hooks, 0, [], lines)


def _learn(lanes: list[Lane], rows: list[torch.Tensor]) -> list[dict[str, float]]:
    scaled: dict[tuple[float, ...], list[torch.Tensor]] = {}
    losses = []
    for lane in lanes:
        if lane.scales not in scaled:
            scaled[lane.scales] = [rows_BD * scale for rows_BD, scale in zip(rows, lane.scales, strict=True)]
        losses.append(lane.step(scaled[lane.scales]))
    return losses


def _look(lanes: list[Lane], heldout_rows) -> list[tuple[Lane, Measured]]:
    """Measure the lanes on the held-out rows."""
    for lane in lanes:
        lane.torn = True
    with ExitStack() as stack:
        for lane in lanes:
            stack.enter_context(lane.for_use())
        found = measure_all(lanes, heldout_rows()) if lanes else []
        return [(lane, lane.note(*one)) for lane, one in zip(lanes, found, strict=True)]


def _tell(hooks: Hooks, rows: int, losses: list[dict[str, float]], lines: list[tuple[Lane, Measured]]) -> None:
    if losses:
        hooks.step(rows, losses)
    for lane, line in lines:
        hooks.measured(lane, line)


def result(lane: Lane, heldout_rows: Callable[[], Iterable[Batch]]) -> Fit:
    """What a lane that is done came to: its best weights, calibrated and measured on all held-out rows.

    Raises LensaeError when nothing is worth keeping. Where rows are divided it is one process's work.
    """
    if lane.trainer.world.rows_divided:
        lane.trainer.world = ALONE
    lane.check_worth()
    lane.torn = True
    lane.trainer.load_state_dict(lane.best)
    lane.trainer.eval()
    with lane.own_random():
        lane.trainer.calibrate(lambda: (tensors(b, lane.device)[0] * lane.scales[0] for b in heldout_rows()))
    [(found, _loss)] = measure_all([lane], heldout_rows())
    fired = strengths(lane.trainer, heldout_rows(), *lane.scales)
    alike = agreement(lane.trainer, heldout_rows(), *lane.scales)
    return Fit(lane.trainer, lane.scales, lane.place.history, found, lane.place.stopped, lane.seconds, fired, alike)


class _Keeper:
    """Writes the lanes' checkpoints when it is time."""

    def __init__(self, lanes: list[Lane], minutes: float, world: World):
        self.world = world
        self.lanes, self.every = [lane for lane in lanes if lane.checkpoint], 60 * minutes
        self.last = time.monotonic()

    def tick(self, hooks: Hooks) -> None:
        """Between two steps: raises KeyboardInterrupt when the caller wants to stop."""
        due = self.world.first and time.monotonic() - self.last >= self.every
        stop, save = self.world.any(hooks.stop(), due)
        if save or (stop and not self.world.alone):
            self.save()
        if stop:
            self.world.wait()  # nobody ends before it is saved
            raise KeyboardInterrupt

    def save(self) -> None:
        """All that are whole; a lane whose weights are no numbers any more keeps its last good checkpoint."""
        for lane in self.lanes if self.world.first or self.world.features_divided else ():
            if not lane.torn and lane.scales and lane.finite:
                state.save(lane)
        self.last = time.monotonic()


@contextmanager
def _closing(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """Batches whose reader is told when no more are wanted."""
    try:
        yield batches
    finally:
        getattr(batches, "close", lambda: None)()
