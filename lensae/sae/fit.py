"""The training loop, one for all families.

Shapes: B rows, D d_model, F features. Rows reach the trainer multiplied by one factor that gives them a mean norm of
sqrt(D); saving folds it away again. A batch is an array (B, D), or for a transcoder a pair of arrays: what it reads and
what it is to predict, each with a factor of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from lensae.errors import LensaeError
from lensae.recipe import TrainRecipe
from lensae.sae.base import SAE
from lensae.sae.evaluate import Accumulator, Reconstruction
from lensae.sae.functional import norm_scale
from lensae.sae.kernels import keep_large_buffers

Batch = np.ndarray | tuple[np.ndarray, np.ndarray]
SMALL_BUDGET_TOKENS = 1_500_000
SAMPLE_ROWS = 16384
LEAST_STEPS = 8  # per epoch: a small set gets a smaller batch rather than hardly any steps


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.csv: losses are means over the epoch, the rest is on the held-out rows after it."""

    epoch: int
    step: int
    tokens: int
    lr: float
    loss: float
    losses: dict[str, float]
    heldout_loss: float
    explained_variance: float
    l0: float
    dead_share: float
    seconds: float
    best: bool


@dataclass
class Fit:
    """What a training came to: the trainer holds the best weights, for rows multiplied by `scales` (the last is the
    targets')."""

    trainer: torch.nn.Module
    scales: tuple[float, ...]
    history: list[Epoch] = field(default_factory=list)
    heldout: Reconstruction | None = None
    stopped: str = "finished"
    seconds: float = 0.0

    def sae(self, metadata: dict) -> SAE:
        """The trained SAE, for raw activations."""
        return self.trainer.sae(self.scales[0], metadata, self.scales[-1])


@dataclass(frozen=True)
class Plan:
    """The numbers a recipe left open, filled in from the number of training rows."""

    rows: int
    d_sae: int
    epochs: int
    steps: int
    lr: float
    batch: int
    dead_window: int


def make_plan(recipe: TrainRecipe, rows: int, d_model: int) -> Plan:
    """Choose what the recipe leaves open.

    Epochs: about 1.5 million tokens in all, from 1 to 30 passes. Learning rate: 2e-4 / sqrt(F / 16384) (Gao et al.
    2024) is meant for long trainings; below some ten million tokens a higher one ends better, so it is 2e-3 there.
    Dead means silent for a tenth of the budget, at most ten million tokens.
    """
    d_sae = max(1, round(recipe.width * d_model))
    batch = min(recipe.batch, max(1, rows // LEAST_STEPS))
    wanted = recipe.tokens or (SMALL_BUDGET_TOKENS if recipe.epochs is None else rows * recipe.epochs)
    epochs = recipe.epochs or max(1, min(30, math.ceil(wanted / rows)))
    steps = max(1, math.ceil(min(wanted, rows * epochs) / batch)) if recipe.tokens else epochs * math.ceil(rows / batch)
    total = steps * batch
    lr = recipe.lr or (2e-3 if total < 10_000_000 else max(3e-4, 2e-4 / math.sqrt(d_sae / 16384)))
    return Plan(rows, d_sae, epochs, steps, lr, batch, max(batch, min(total // 10, 10_000_000)))


def learning_rate(step: int, plan: Plan, recipe: TrainRecipe) -> float:
    """Linear warm-up, constant, linear decay to zero over the last part."""
    warmup, decay = recipe.warmup * plan.steps, recipe.decay * plan.steps
    up = min(1.0, (step + 1) / warmup) if warmup >= 1 else 1.0
    down = min(1.0, (plan.steps - step) / decay) if decay >= 1 else 1.0
    return plan.lr * up * down


def fit(
    make_trainer: Callable[[int], torch.nn.Module],
    train_rows: Callable[[int], Iterator[Batch]],
    heldout_rows: Callable[[], Iterable[Batch]],
    recipe: TrainRecipe,
    plan: Plan,
    on_step: Callable[[int, dict[str, float]], None] = lambda rows, losses: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Fit:
    """Train until the plan is done, the held-out rows stop improving, or the caller interrupts.

    `make_trainer(dead_window)` makes the model, `train_rows(epoch)` yields batches (B, D) of an epoch and
    `heldout_rows()` those of the held-out documents, on which a family that needs it is calibrated too. The best
    epoch's weights are kept. Raises LensaeError when the loss is not finite before there is anything worth keeping.
    """
    keep_large_buffers()
    torch.manual_seed(recipe.seed)
    started = time.perf_counter()
    sample = _sample(train_rows(0))
    scales = tuple(norm_scale(rows_BD) for rows_BD in sample)
    trainer = make_trainer(plan.dead_window)
    trainer.initialise(*(rows_BD * scale for rows_BD, scale in zip(sample, scales, strict=True)))
    run = Fit(trainer, scales)
    loop = _Loop(run, recipe, plan, heldout_rows, on_step, on_epoch)
    try:
        loop.run(train_rows)
    except KeyboardInterrupt:
        if loop.best is None:
            raise
        run.stopped = "interrupted"
    except FloatingPointError as error:
        if loop.best is None:
            raise LensaeError(f"training failed: {error}", "try a lower --lr") from None
        run.stopped = str(error)
    trainer.load_state_dict(loop.best)
    trainer.eval()
    trainer.calibrate(lambda: (rows[0] * scales[0] for rows in map(_tensors, heldout_rows())))
    run.heldout, _loss = measure(trainer, heldout_rows(), *scales)
    run.seconds = time.perf_counter() - started
    return run


def _tensors(batch: Batch) -> list[torch.Tensor]:
    """Input rows, and target rows if there are any."""
    return [torch.from_numpy(rows_BD) for rows_BD in (batch if isinstance(batch, tuple) else (batch,))]


def _sample(batches: Iterator[Batch]) -> list[torch.Tensor]:
    parts, rows = [], 0
    for batch in map(_tensors, batches):
        parts.append(batch)
        rows += len(batch[0])
        if rows >= SAMPLE_ROWS:
            break
    sample = [torch.cat(kind)[:SAMPLE_ROWS] for kind in zip(*parts, strict=True)]
    if not all(torch.isfinite(rows_BD).all() for rows_BD in sample):
        raise LensaeError("the activations are not finite", "python main.py store verify")
    return sample


class _Loop:
    """One run of `fit`: what changes from step to step."""

    def __init__(self, run: Fit, recipe: TrainRecipe, plan: Plan, heldout_rows, on_step, on_epoch):
        self.trainer, self.fit, self.recipe, self.plan = run.trainer, run, recipe, plan
        self.heldout_rows, self.on_step, self.on_epoch = heldout_rows, on_step, on_epoch
        self.optimizer = torch.optim.Adam(self.trainer.parameters(), lr=plan.lr, betas=(0.9, 0.999), fused=True)
        self.best: dict | None = None
        self.best_loss, self.waited, self.step, self.tokens = math.inf, 0, 0, 0
        self.started = time.perf_counter()

    def run(self, train_rows) -> None:
        for number in range(self.plan.epochs):
            sums = self._epoch(train_rows(number))
            self._close_epoch(number, sums)
            if self.waited >= self.recipe.patience and self.step < self.plan.steps:
                self.fit.stopped = f"no better on held-out documents for {self.waited} epochs"
                return

    def _epoch(self, batches: Iterator[np.ndarray]) -> dict[str, float]:
        self.trainer.train()
        sums: dict[str, float] = {}
        seen = 0
        for batch in batches:
            if self.step >= self.plan.steps:
                break
            rows = [rows_BD * scale for rows_BD, scale in zip(_tensors(batch), self.fit.scales, strict=True)]
            losses = self._train_step(rows)
            seen += len(rows[0])
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value * len(rows[0])
            self.on_step(len(rows[0]), losses)
        return {name: value / max(seen, 1) for name, value in sums.items()}

    def _train_step(self, rows: list[torch.Tensor]) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.plan, self.recipe)
        self.trainer.progress = self.step / self.plan.steps
        result = self.trainer(*rows)
        loss = sum(result.losses.values())
        losses = {name: float(part.detach()) for name, part in result.losses.items()}
        if not math.isfinite(sum(losses.values())):
            raise FloatingPointError(f"the loss was {sum(losses.values())} at step {self.step}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.trainer.before_step()
        torch.nn.utils.clip_grad_norm_(self.trainer.parameters(), 1.0)
        self.optimizer.step()
        self.trainer.after_step()
        self.step += 1
        self.tokens += len(rows[0])
        return losses

    def _close_epoch(self, number: int, losses: dict[str, float]) -> None:
        self.trainer.eval()
        found, heldout_loss = measure(self.trainer, self.heldout_rows(), *self.fit.scales)
        better = heldout_loss < self.best_loss * (1 - 1e-4)
        if better:
            self.best = {name: value.detach().clone() for name, value in self.trainer.state_dict().items()}
            self.best_loss, self.waited = heldout_loss, 0
        else:
            self.waited += 1
        epoch = Epoch(
            number + 1,
            self.step,
            self.tokens,
            learning_rate(max(self.step - 1, 0), self.plan, self.recipe),
            sum(losses.values()),
            losses,
            heldout_loss,
            found.explained_variance,
            found.l0,
            found.dead_share,
            time.perf_counter() - self.started,
            better,
        )
        self.fit.history.append(epoch)
        self.on_epoch(epoch)


@torch.no_grad()
def measure(trainer: torch.nn.Module, batches: Iterable[Batch], *scales: float) -> tuple[Reconstruction, float]:
    """The trainer's figures on rows in the units of the store, and its mean loss there."""
    accumulator, loss, rows = None, 0.0, 0
    for batch in map(_tensors, batches):
        step = trainer(*(rows_BD * scale for rows_BD, scale in zip(batch, scales, strict=True)))
        target_BD = batch[-1]
        if accumulator is None:
            accumulator = Accumulator(target_BD.shape[1], step.features.shape[1])
        accumulator.add(target_BD, step.x_hat_BD / scales[-1], step.features.count_F())
        loss += float(sum(step.losses.values())) * len(target_BD)
        rows += len(target_BD)
    if accumulator is None:
        raise LensaeError("there are no held-out rows to measure on", "collect more than one prompt")
    return accumulator.result(), loss / rows
