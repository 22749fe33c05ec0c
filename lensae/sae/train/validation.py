"""Trainers on held-out rows.

Shapes: B rows, D d_model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from lensae.core.errors import LensaeError
from lensae.core.program import command
from lensae.sae.distributed.process_group import ProcessGroup
from lensae.sae.metrics.histogram import counted
from lensae.sae.metrics.reconstruction import Accumulator, Reconstruction
from lensae.sae.train.run import TrainingRun

SAMPLE_ROWS = 16384  # of held-out rows, for what needs no more
Batch = np.ndarray | tuple[np.ndarray, np.ndarray]


class NotFinite(LensaeError):
    """Rows that are to be learnt from hold values that are not numbers."""


def tensors(batch: Batch, device: str | torch.device = "cpu") -> list[torch.Tensor]:
    """Input rows, and target rows if there are any, on the device; raises NotFinite when they are no numbers."""
    rows = [torch.from_numpy(rows_BD) for rows_BD in (batch if isinstance(batch, tuple) else (batch,))]
    if not all(math.isfinite(float(rows_BD.sum())) for rows_BD in rows):
        raise NotFinite("the activations are not finite", command("store verify"))
    if torch.device(device).type == "cuda":
        rows = [rows_BD.pin_memory().to(device, non_blocking=True) for rows_BD in rows]
    return rows


def validate(trainer: torch.nn.Module, batches: Iterable[Batch], *scales: float) -> tuple[Reconstruction, float]:
    """A trainer's figures on rows in the units of the store, and its mean loss there."""
    [found] = _validate([(trainer, scales)], batches, trainer.group)
    return found


def validate_all(runs: list[TrainingRun], batches: Iterable[Batch]) -> list[tuple[Reconstruction, float]]:
    """The same of every run, each batch read once."""
    return _validate([(run.trainer, run.scales) for run in runs], batches, runs[0].trainer.group)


@torch.no_grad()
def _validate(
    trainers: list[tuple[torch.nn.Module, tuple[float, ...]]], batches, group: ProcessGroup
) -> list[tuple[Reconstruction, float]]:
    sums: list[Accumulator] = []
    losses, seen = [0.0] * len(trainers), 0
    for trainer, _scales in trainers:
        trainer.eval()
    device = trainers[0][0].W_dec.device
    for whole in group.batches(tensors(batch, device) for batch in batches):
        rows = [group.own_rows(rows_BD) for rows_BD in whole]
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
        total.join(group)
    return [(total.result(), loss / seen) for total, loss in zip(sums, losses, strict=True)]


@torch.no_grad()
def activation_histogram(trainer: torch.nn.Module, batches: Iterable[Batch], *scales: float) -> tuple[np.ndarray, int]:
    """Counts of held-out activations by size, as the saved SAE gives them (lensae.sae.metrics.histogram), and how many
    are zero."""
    trainer.eval()
    counts, seen = torch.from_numpy(counted(np.empty(0))), 0
    for rows in (tensors(batch, trainer.W_dec.device) for batch in batches):
        features = trainer(*(rows_BD * scale for rows_BD, scale in zip(rows, scales, strict=True))).features
        value = trainer.as_saved(features) / scales[-1]
        counts += torch.from_numpy(counted(value[value > 0].cpu().numpy()))
        seen += len(rows[0])
        if seen >= SAMPLE_ROWS:
            break
    counts = trainer.group.sum_over_features(counts)
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
    both, *each = trainer.group.sum_over_features(counts).tolist()
    return both / max(*each, 1)
