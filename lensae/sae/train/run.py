"""One SAE on its way through training: its trainer, its optimizer, and where it has got to.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lensae.core.errors import LensaeError
from lensae.core.recipe import TrainRecipe
from lensae.sae.metrics.reconstruction import Reconstruction
from lensae.sae.train import resampling
from lensae.sae.train.ema import ExponentialMovingAverage
from lensae.sae.train.optimizer import Adam
from lensae.sae.train.schedule import Plan, learning_rate

if TYPE_CHECKING:
    from lensae.sae.architectures._base import BaseTrainer


@dataclass(frozen=True)
class Measurement:
    """One line of metrics.csv: losses are means over the steps since the line before, `dead_share` is the share of
    features that never fired in these steps, the rest is on held-out rows.

    `seconds` counts the time in training, not that between an interruption and going on.
    """

    epoch: int
    step: int
    tokens: int
    lr: float
    loss: float
    losses: dict[str, float]
    heldout_loss: float
    explained_variance_typical: float
    explained_variance: float
    l0: float
    dead_share: float
    seconds: float
    best: bool


@dataclass
class TrainingState:
    """How far a training is; `epoch` and `batch` are those of the batch that comes next, both from 0.

    `sums` and `seen` are of the losses since the last measurement; `waited` is the number of epochs since one was
    better than all before; `stopped` says why the training is over.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    tokens: int = 0
    best_loss: float = math.inf
    better: bool = False
    waited: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seen: int = 0
    seconds: float = 0.0
    stopped: str = ""
    history: list[Measurement] = field(default_factory=list)


class TrainingRun:
    """One SAE in training. `scales` are the factors of its rows, the last that of the targets; `checkpoint` is the file
    that it is kept in. Its random numbers are its own, so that neighbours on the same stream change nothing; they are
    drawn on the CPU whatever the device.

    `mid_step` is set while its state is that of no moment between two batches; a run that failed stays so.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        plan: Plan,
        make_trainer: Callable[[int], BaseTrainer],
        checkpoint: Path | None = None,
        device: str = "cpu",
    ):
        self.recipe, self.plan, self.checkpoint, self.device = recipe, plan, checkpoint, device
        generator = torch.Generator().manual_seed(recipe.seed if recipe.init_seed is None else recipe.init_seed)
        self.random = generator.get_state()
        with self.own_random():
            self.trainer = make_trainer(plan.dead_window).to(device)
        self.trainer.steps, self.trainer.aux = plan.steps, plan.aux
        groups = self.trainer.parameter_groups(plan.encoder_share)
        self.optimizer = Adam(groups, plan.lr, (plan.beta1, plan.beta2))
        self.scales: tuple[float, ...] = ()
        self.average: ExponentialMovingAverage | None = None
        self.best: dict[str, torch.Tensor] | None = None
        self.state = TrainingState()
        self.mid_step = self.failed = False
        self.since = time.perf_counter()

    def start(self, sample: list[torch.Tensor], scales: tuple[float, ...]) -> None:
        """The analytic start, from a sample of rows as they are."""
        self.scales = scales
        with self.own_random():
            rows = [rows_BD.to(self.device) * scale for rows_BD, scale in zip(sample, scales, strict=True)]
            self.trainer.initialise(*rows)
        tensors = self.trainer.state_dict().items()
        self.trainer.group.same(*(t for name, t in tensors if self.trainer.is_shared(name)))
        if self.recipe.average:
            self.average = ExponentialMovingAverage(self.trainer, self.recipe.average)

    @contextmanager
    def own_random(self) -> Iterator[None]:
        """torch's generator as this run left it; afterwards it is again what it was before."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.random)
        try:
            yield
        finally:
            self.random = torch.get_rng_state()
            torch.set_rng_state(before)

    @property
    def done(self) -> bool:
        """Whether there are no more steps to come."""
        return bool(self.state.stopped)

    @property
    def seconds(self) -> float:
        """Time in training so far."""
        return self.state.seconds + time.perf_counter() - self.since

    def at(self, epoch: int, batch: int) -> bool:
        """Whether this batch is its next one."""
        return not self.done and (self.state.epoch, self.state.batch) == (epoch, batch)

    def step(self, rows: list[torch.Tensor]) -> dict[str, float]:
        """Learn from one batch of rows, multiplied by the scales; the parts of its loss.

        A loss that is not finite ends the training before it has changed a weight.
        """
        self.mid_step = True
        self.trainer.train()
        state = self.state
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(state.step, self.plan, self.recipe)
        self.trainer.progress = state.step / self.plan.steps
        with self.own_random():
            result = self.trainer(*rows)
        losses = {name: float(part.detach()) for name, part in result.losses.items()}
        if not math.isfinite(sum(losses.values())):
            state.stopped, self.failed = f"the loss was {sum(losses.values())} at step {state.step}", True
            return losses
        self._descend(sum(result.losses.values()))
        self._count(losses, self.trainer.group.count_rows(len(rows[0])))
        if resampling.due(state.step, self.recipe.resample, self.plan, self.recipe.decay):
            with self.own_random():
                resampling.resample(self.trainer, self.optimizer, rows[0], rows[-1])
        if self.average:
            self.average.update(self.trainer)
        return losses

    def for_use(self) -> AbstractContextManager:
        """The trainer has meanwhile the weights that are measured and kept."""
        return self.average.in_place(self.trainer) if self.average else nullcontext()

    def end_step(self) -> None:
        """All that belongs to a batch is done."""
        self.mid_step = self.failed

    def _descend(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.trainer.share_gradients()
        self.trainer.before_step()
        self.trainer.clip_gradients(1.0)
        self.optimizer.step()
        self.trainer.after_step()

    def _count(self, losses: dict[str, float], rows: int) -> None:
        state = self.state
        state.step, state.batch = state.step + 1, state.batch + 1
        state.tokens, state.seen = state.tokens + rows, state.seen + rows
        for name, value in losses.items():
            state.sums[name] = state.sums.get(name, 0.0) + value * rows

    @property
    def due(self) -> bool:
        """Whether to measure on the held-out rows now, in an epoch or at its end."""
        batches, validations = math.ceil(self.plan.rows / self.plan.batch), self.plan.validations
        done = self.state.batch
        return done * validations // batches > (done - 1) * validations // batches

    @property
    def finite(self) -> bool:
        """Whether every weight is a number."""
        return self.trainer.finite

    def record(self, figures: Reconstruction, heldout_loss: float) -> Measurement:
        """Add a measurement; the weights of the best one are kept, unless no feature fired."""
        state = self.state
        better = heldout_loss < state.best_loss * (1 - 1e-4) and figures.dead_share < 1
        if better:
            self.best = {name: value.detach().clone() for name, value in self.trainer.state_dict().items()}
            state.best_loss, state.better = heldout_loss, True
        elif figures.dead_share == 1 and self.trainer.all_dead:
            state.stopped = f"every feature was dead after {state.tokens:,} tokens"
        losses = {name: value / max(state.seen, 1) for name, value in state.sums.items()}
        line = Measurement(
            epoch=state.epoch + 1,
            step=state.step,
            tokens=state.tokens,
            lr=learning_rate(max(state.step - 1, 0), self.plan, self.recipe),
            loss=sum(losses.values()),
            losses=losses,
            heldout_loss=heldout_loss,
            explained_variance_typical=figures.explained_variance_typical,
            explained_variance=figures.explained_variance,
            l0=figures.l0,
            dead_share=self.trainer.silent_share(state.seen),
            seconds=self.seconds,
            best=better,
        )
        state.sums, state.seen = {}, 0
        state.history.append(line)
        return line

    def end_epoch(self) -> None:
        """The epoch is over: go on to the next, or stop."""
        state = self.state
        state.waited = 0 if state.better else state.waited + 1
        state.epoch, state.batch, state.better = state.epoch + 1, 0, False
        if state.stopped:
            return
        if state.step >= self.plan.steps or state.epoch >= self.plan.epochs:
            state.stopped = "finished"
        elif state.waited >= self.recipe.patience:
            state.stopped = f"no better on held-out documents for {state.waited} epochs"

    def check_worth(self) -> None:
        """Raise LensaeError when the training ended with nothing worth keeping."""
        if self.best is None:
            stopped = self.state.stopped
            why = stopped if stopped != "finished" else f"every feature was dead after {self.state.tokens:,} tokens"
            hint = "try a lower --lr" if "loss" in why else "try a lower --lr, a lower --l1 or more epochs"
            raise LensaeError(f"training failed: {why}", hint)
