"""Trainers on held-out rows.

Shapes: B rows, D d_model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from lensae.errors import LensaeError
from lensae.sae.evaluate import Accumulator, Reconstruction, massive_norm_at
from lensae.sae.histogram import counted
from lensae.sae.lane import Lane
from lensae.sae.world import World

SAMPLE_ROWS = 16384  # of held-out rows, for what needs no more
Batch = np.ndarray | tuple[np.ndarray, np.ndarray]


class NotFinite(LensaeError):
    """Rows that are to be learnt from hold values that are not numbers."""


def tensors(batch: Batch, device: str | torch.device = "cpu") -> list[torch.Tensor]:
    """Input rows, and target rows if there are any, on the device; raises NotFinite when they are no numbers."""
    rows = [torch.from_numpy(rows_BD) for rows_BD in (batch if isinstance(batch, tuple) else (batch,))]
    if not all(math.isfinite(float(rows_BD.sum())) for rows_BD in rows):
        raise NotFinite("the activations are not finite", "python main.py store verify")
    if torch.device(device).type == "cuda":
        rows = [rows_BD.pin_memory().to(device, non_blocking=True) for rows_BD in rows]
    return rows


def measure(trainer: torch.nn.Module, batches: Iterable[Batch], *scales: float) -> tuple[Reconstruction, float]:
    """A trainer's figures on rows in the units of the store, and its mean loss there."""
    [found] = _measure([(trainer, scales)], batches, trainer.world)
    return found


def measure_all(lanes: list[Lane], batches: Iterable[Batch]) -> list[tuple[Reconstruction, float]]:
    """The same of every lane, each batch read once."""
    return _measure([(lane.trainer, lane.scales) for lane in lanes], batches, lanes[0].trainer.world)


@torch.no_grad()
def _measure(
    trainers: list[tuple[torch.nn.Module, tuple[float, ...]]], batches, world: World
) -> list[tuple[Reconstruction, float]]:
    sums: list[Accumulator] = []
    losses, seen = [0.0] * len(trainers), 0
    for trainer, _scales in trainers:
        trainer.eval()
    device = trainers[0][0].W_dec.device
    for whole in world.batches(tensors(batch, device) for batch in batches):
        rows = [world.part(rows_BD) for rows_BD in whole]
        for number, (trainer, scales) in enumerate(trainers):
            step = trainer(*(rows_BD * scale for rows_BD, scale in zip(rows, scales, strict=True)))
            if len(sums) <= number:
                width = rows[-1].shape[1]
                sums.append(Accumulator(width, step.features.shape[1], massive_norm_at(scales[-1], width)))
            sums[number].add(rows[-1], step.x_hat_BD / scales[-1], step.features.count_F())
            losses[number] += float(sum(step.losses.values())) * len(whole[-1])
        seen += len(whole[-1])
    if not seen:
        raise LensaeError("there are no held-out rows to measure on", "collect more than one prompt")
    for total in sums:
        total.join(world)
    return [(total.result(), loss / seen) for total, loss in zip(sums, losses, strict=True)]


@torch.no_grad()
def strengths(trainer: torch.nn.Module, batches: Iterable[Batch], *scales: float) -> tuple[np.ndarray, int]:
    """Counts of activations by size, as the saved SAE gives them (lensae.sae.histogram), and how many are zero, on
    held-out rows."""
    trainer.eval()
    counts, seen = torch.from_numpy(counted(np.empty(0))), 0
    for rows in (tensors(batch, trainer.W_dec.device) for batch in batches):
        features = trainer(*(rows_BD * scale for rows_BD, scale in zip(rows, scales, strict=True))).features
        value = trainer.as_saved(features) / scales[-1]
        counts += torch.from_numpy(counted(value[value > 0].cpu().numpy()))
        seen += len(rows[0])
        if seen >= SAMPLE_ROWS:
            break
    counts = trainer.world.over_features(counts)
    return counts.numpy(), seen * trainer.d_sae - int(counts.sum())


@torch.no_grad()
def agreement(trainer: torch.nn.Module, batches: Iterable[Batch], *scales: float) -> float | None:
    """The share of features that fire on held-out rows whichever precision selects them, that of the training or that
    of the rows (of the larger number of the two); None for a training in the precision of the rows."""
    if trainer.reduced is None:
        return None
    trainer.eval()
    counts, seen = torch.zeros(3, dtype=torch.int64), 0
    for rows in (tensors(batch, trainer.W_dec.device) for batch in batches):
        scaled = [rows_BD * scale for rows_BD, scale in zip(rows, scales, strict=True)]
        exact_N = trainer(*scaled).features.fires()
        trainer.product = trainer.reduced
        found_N = trainer(*scaled).features.fires()
        trainer.product = None
        both = int(torch.isin(found_N, exact_N, assume_unique=True).sum())
        counts += torch.tensor([both, len(found_N), len(exact_N)])
        seen += len(rows[0])
        if seen >= SAMPLE_ROWS:
            break
    both, *each = trainer.world.over_features(counts).tolist()
    return both / max(*each, 1)
