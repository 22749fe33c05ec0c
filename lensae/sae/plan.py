"""What a recipe leaves open, chosen from how many rows there are, and the course of the learning rate."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from lensae.recipe import TrainRecipe

SMALL_BUDGET_TOKENS = 1_500_000
LONG_TRAINING_TOKENS = 10_000_000
LEAST_STEPS = 8  # per epoch: a small set gets a smaller batch rather than hardly any steps
MEASURED = 10  # times, at least, in a training that has as many steps


@dataclass(frozen=True)
class Plan:
    """The numbers of one training: `measures` is how often in an epoch the held-out rows are looked at."""

    rows: int
    d_sae: int
    k: int
    epochs: int
    steps: int
    lr: float
    batch: int
    dead_window: int
    measures: int = 1


def complete(recipe: TrainRecipe, rows: int, d_model: int) -> TrainRecipe:
    """The recipe with width, k and batch filled in where it leaves them open."""
    width = recipe.width or 4
    k = recipe.k or max(1, min(32, round(width * d_model) // 2))
    return dataclasses.replace(recipe, width=width, k=k, batch=recipe.batch or 2048)


def make_plan(recipe: TrainRecipe, rows: int, d_model: int) -> Plan:
    """Choose what the recipe leaves open.

    Epochs: about 1.5 million tokens in all, from 1 to 30 passes. Learning rate: 2e-4 / sqrt(F / 16384) (Gao et al.
    2024) is meant for long trainings; below some ten million tokens a higher one ends better, so it is 2e-3 there.
    Dead means silent for a tenth of the budget, at most ten million tokens.
    """
    recipe = complete(recipe, rows, d_model)
    d_sae = max(1, round(recipe.width * d_model))
    batch = min(recipe.batch, max(1, rows // LEAST_STEPS))
    wanted = recipe.tokens or (SMALL_BUDGET_TOKENS if recipe.epochs is None else rows * recipe.epochs)
    epochs = recipe.epochs or max(1, min(30, math.ceil(wanted / rows)))
    steps = max(1, math.ceil(min(wanted, rows * epochs) / batch)) if recipe.tokens else epochs * math.ceil(rows / batch)
    total = steps * batch
    lr = recipe.lr or (2e-3 if total < LONG_TRAINING_TOKENS else max(3e-4, 2e-4 / math.sqrt(d_sae / 16384)))
    window = max(batch, min(total // 10, 10_000_000))
    return Plan(rows, d_sae, recipe.k, epochs, steps, lr, batch, window, math.ceil(MEASURED / epochs))


def learning_rate(step: int, plan: Plan, recipe: TrainRecipe) -> float:
    """Linear warm-up, constant, linear decay to zero over the last part."""
    warmup, decay = recipe.warmup * plan.steps, recipe.decay * plan.steps
    up = min(1.0, (step + 1) / warmup) if warmup >= 1 else 1.0
    down = min(1.0, (plan.steps - step) / decay) if decay >= 1 else 1.0
    return plan.lr * up * down
