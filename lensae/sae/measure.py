"""Trainers on held-out rows.

Shapes: B rows, D d_model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from lensae.errors import LensaeError
from lensae.sae.evaluate import Accumulator, Reconstruction
from lensae.sae.lane import Lane
from lensae.sae.world import World

Batch = np.ndarray | tuple[np.ndarray, np.ndarray]


class NotFinite(LensaeError):
    """Rows that are to be learnt from hold values that are not numbers."""


def tensors(batch: Batch) -> list[torch.Tensor]:
    """Input rows, and target rows if there are any; raises NotFinite when they are no numbers."""
    rows = [torch.from_numpy(rows_BD) for rows_BD in (batch if isinstance(batch, tuple) else (batch,))]
    if not all(math.isfinite(float(rows_BD.sum())) for rows_BD in rows):
        raise NotFinite("the activations are not finite", "python main.py store verify")
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
    for whole in world.batches(map(tensors, batches)):
        rows = [world.part(rows_BD) for rows_BD in whole]
        for number, (trainer, scales) in enumerate(trainers):
            step = trainer(*(rows_BD * scale for rows_BD, scale in zip(rows, scales, strict=True)))
            if len(sums) <= number:
                sums.append(Accumulator(rows[-1].shape[1], step.features.shape[1]))
            sums[number].add(rows[-1], step.x_hat_BD / scales[-1], step.features.count_F())
            losses[number] += float(sum(step.losses.values())) * len(whole[-1])
        seen += len(whole[-1])
    if not seen:
        raise LensaeError("there are no held-out rows to measure on", "collect more than one prompt")
    for total in sums:
        total.join(world)
    return [(total.result(), loss / seen) for total, loss in zip(sums, losses, strict=True)]
