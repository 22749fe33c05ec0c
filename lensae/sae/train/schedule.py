"""What a recipe leaves open, chosen from how many rows there are, and the course of the learning rate."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass

from lensae.core.recipe import TrainRecipe

SMALL_BUDGET_TOKENS = 1_500_000
LONG_TRAINING_TOKENS = 10_000_000
SHORT_STEPS = 200
AUX = 1 / 32  # the weight of AuxK in Gao et al. 2024
# Learning rate, betas of Adam, the share of the budget after which a silent feature counts as dead, and the weight of
# AuxK: the usual ones, and those where there are fewer steps than SHORT_STEPS. Measured on 65 steps of topk and
# batchtopk (d_model 576, F 4608, k 32): a fifth less of the variance is left unexplained than with the usual ones, and
# 0.0 and 0.1 % of the features die.
USUAL = (2e-3, 0.9, 0.999, 10, AUX)
SHORT = (6e-3, 0.7, 0.95, 100, 1 / 8)
# A feature counts as dead only after as many tokens as an average one needs to fire LEAST_FIRINGS times. Where an
# average one fires on fewer than FIRINGS rows of a batch, the encoder's weights learn more slowly in short trainings,
# by the square root of the ratio: the fewer the rows behind a step, the more of it is noise. Measured like SHORT, topk
# with F 18432: without both 41 % of the features die, with both 1 %, and explained variance ends 0.014 higher. Longer
# trainings end worse with a slower encoder.
LEAST_FIRINGS, FIRINGS = 25, 28
LEAST_STEPS = 8  # per epoch: a small set gets a smaller batch rather than hardly any steps
# A training that has as many steps is measured on held-out rows at least VALIDATIONS times, each time on so many of
# them that all these together are VALIDATION_SHARE of the rows that are learnt from, within VALIDATION_ROWS.
VALIDATIONS, VALIDATION_SHARE, VALIDATION_ROWS = 10, 0.1, (2048, 16384)
WIDTHS = ((3_000_000, 16), (300_000, 8), (0, 4))  # training rows from which on an SAE is so wide
LARGE_BATCH_ROWS = 3_000_000
PATIENCE_S = 3600  # a width is chosen by itself only when the training then takes no longer
# Encoder products (2 D F a row) that a core gets through in a second of training, all else included: topk, D 576,
# F 2304, two cores of an AMD Zen 5.
CORE_FLOPS = 30e9


@dataclass(frozen=True)
class Plan:
    """The numbers of one training: `validations` is how often in an epoch the trainer is measured on held-out rows,
    `validation_rows` on how many, `encoder_share` the encoder's share of the learning rate (families with an L1 penalty
    do without)."""

    rows: int
    d_sae: int
    k: int
    epochs: int
    steps: int
    lr: float
    batch: int
    dead_window: int
    validations: int = 1
    validation_rows: int = VALIDATION_ROWS[1]
    beta1: float = 0.9
    beta2: float = 0.999
    aux: float = AUX
    encoder_share: float = 1.0


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seconds(tokens: int, d_sae: int, d_model: int) -> float:
    """About how long a training takes on this machine's cores."""
    return tokens * 2 * d_model * d_sae / (cores() * CORE_FLOPS)


def _width(rows: int, d_model: int) -> float:
    tokens = max(rows, SMALL_BUDGET_TOKENS)
    fitting = [width for least, width in WIDTHS if rows >= least]
    quick = [width for width in fitting if seconds(tokens, width * d_model, d_model) <= PATIENCE_S]
    return (quick or fitting[-1:])[0]


def complete(recipe: TrainRecipe, rows: int, d_model: int) -> TrainRecipe:
    """The recipe with width, k and batch filled in where it leaves them open.

    Width: 4 times d_model below 300,000 training rows, 8 times below 3 million, 16 times from there on, as long as the
    machine has done in an hour. k: 32, at most half the features. Batch: 2048 rows, 4096 from 3 million rows on.
    """
    width = recipe.width or _width(rows, d_model)
    k = recipe.k or max(1, min(32, round(width * d_model) // 2))
    batch = recipe.batch or (4096 if rows >= LARGE_BATCH_ROWS else 2048)
    return dataclasses.replace(recipe, width=width, k=k, batch=batch)


def make_plan(recipe: TrainRecipe, rows: int, d_model: int) -> Plan:
    """Choose what the recipe leaves open.

    Epochs: about 1.5 million tokens in all, from 1 to 30 passes. Learning rate: 2e-4 / sqrt(F / 16384) (Gao et al.
    2024) is meant for long trainings; below some ten million tokens a higher one ends better, so it is 2e-3 there,
    and below SHORT_STEPS steps 6e-3, with a shorter memory of past gradients, a heavier auxiliary loss and, in wide
    SAEs, a slower encoder (unless the recipe has a rate). Dead means silent for a tenth of the budget (a hundredth of
    such a short one), at most ten million tokens, or for as long as an average feature takes to fire LEAST_FIRINGS
    times.
    """
    recipe = complete(recipe, rows, d_model)
    assert recipe.width is not None and recipe.k is not None and recipe.batch is not None
    d_sae = max(1, round(recipe.width * d_model))
    batch = min(recipe.batch, max(1, rows // LEAST_STEPS))
    wanted = recipe.tokens or (SMALL_BUDGET_TOKENS if recipe.epochs is None else rows * recipe.epochs)
    epochs = recipe.epochs or max(1, min(30, math.ceil(wanted / rows)))
    steps = max(1, math.ceil(min(wanted, rows * epochs) / batch)) if recipe.tokens else epochs * math.ceil(rows / batch)
    total = steps * batch
    lr, *betas, dead_fraction, aux = SHORT if steps < SHORT_STEPS else USUAL
    if total >= LONG_TRAINING_TOKENS:
        lr = max(3e-4, 2e-4 / math.sqrt(d_sae / 16384))
    share_active = (recipe.target_l0 or recipe.k) / d_sae
    window = max(batch, min(total // dead_fraction, 10_000_000), round(LEAST_FIRINGS / share_active))
    aux = aux if recipe.aux is None else recipe.aux
    slow = steps < SHORT_STEPS and recipe.lr is None
    encoder = min(1.0, math.sqrt(batch * share_active / FIRINGS)) if slow else 1.0
    validations = math.ceil(VALIDATIONS / epochs)
    return Plan(
        rows=rows,
        d_sae=d_sae,
        k=recipe.k,
        epochs=epochs,
        steps=steps,
        lr=recipe.lr or lr,
        batch=batch,
        dead_window=window,
        validations=validations,
        validation_rows=_validation_rows(total, validations * epochs),
        beta1=betas[0],
        beta2=betas[1],
        aux=aux,
        encoder_share=encoder,
    )


def _validation_rows(tokens: int, validations: int) -> int:
    least, most = VALIDATION_ROWS
    return min(most, max(least, round(VALIDATION_SHARE * tokens / validations)))


def memory_needed(recipe: TrainRecipe, plan: Plan, d_model: int) -> int:
    """The bytes that a training takes at least: 40 d_model for each feature, 48 with a moving average of the weights.

    They are encoder and decoder in float32, their gradients, Adam's two moments and the best weights so far. A
    transcoder is counted as if its target had d_model too.
    """
    weights = 2 * 4 * d_model * plan.d_sae
    return weights * (6 if recipe.average else 5)


def learning_rate(step: int, plan: Plan, recipe: TrainRecipe) -> float:
    """Linear warm-up, constant, linear decay to zero over the last part."""
    warmup, decay = recipe.warmup * plan.steps, recipe.decay * plan.steps
    up = min(1.0, (step + 1) / warmup) if warmup >= 1 else 1.0
    down = min(1.0, (plan.steps - step) / decay) if decay >= 1 else 1.0
    return plan.lr * up * down


def explain(recipe: TrainRecipe, plan: Plan, d_model: int) -> list[str]:
    """Why the plan has the numbers that the recipe, as it was given, left open; and how long it may take."""
    why = []
    if recipe.width is None:
        why.append(f"width {plan.d_sae / d_model:g} for {plan.rows:,} training rows: more features want more rows")
    if recipe.epochs is None and recipe.tokens is None:
        passes = "one pass" if plan.epochs == 1 else f"{plan.epochs} epochs"
        why.append(f"{passes}: " + ("there are rows enough" if plan.epochs == 1 else "about 1.5 M tokens in all"))
    if recipe.lr is None:
        short = plan.steps * plan.batch < LONG_TRAINING_TOKENS
        why.append(
            f"learning rate {plan.lr:g}: " + ("high, as the training is short" if short else "for long trainings")
        )
    if plan.encoder_share < 1:
        why.append(f"the encoder's {plan.encoder_share:.2g} of it: in few steps a feature fires on few rows of a batch")
    minutes = seconds(plan.steps * plan.batch, plan.d_sae, d_model) / 60
    took = f"about {minutes:,.0f} min" if minutes >= 1 else "less than a minute"
    return [*why, f"{took} on {cores()} cores, sooner if held-out documents stop improving"]
