"""Trainers on held-out rows: whatever is measured, each row is read and encoded once.

Shapes: B rows, D d_model, F features, N active pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from lensae.core.errors import LensaeError
from lensae.core.prefetch import prefetch
from lensae.core.program import command
from lensae.sae import kernels
from lensae.sae.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lensae.sae.metrics.histogram import BINS, counted
from lensae.sae.metrics.reconstruction import Accumulator, Reconstruction, massive_norm_at
from lensae.sae.train.run import TrainingRun

if TYPE_CHECKING:
    from lensae.sae.architectures._base import BaseTrainer, Step


AGREEMENT_ROWS = 16384  # the share of features that two precisions select alike needs no more
Batch = np.ndarray | tuple[np.ndarray, np.ndarray]


class NotFinite(LensaeError):
    """Rows that are to be learnt from hold values that are not numbers."""


@dataclass(frozen=True)
class FinalFigures:
    """What is measured of a finished trainer on held-out rows.

    activation_histogram  counts of activations by size, as the saved SAE gives them (lensae.sae.metrics.histogram), and
                          how many are zero
    agreement             the share of features that fire whichever precision selects them, that of the training or that
                          of the rows (of the larger number of the two); None where these are the same
    """

    reconstruction: Reconstruction
    activation_histogram: tuple[np.ndarray, int]
    agreement: float | None


def tensors(batch: Batch, device: str | torch.device = "cpu") -> list[torch.Tensor]:
    """Input rows, and target rows if the batch has any, on the device; raises NotFinite when they are no numbers."""
    rows = [torch.from_numpy(rows_BD) for rows_BD in (batch if isinstance(batch, tuple) else (batch,))]
    if not all(math.isfinite(float(rows_BD.sum())) for rows_BD in rows):
        raise NotFinite("the activations are not finite", command("store verify"))
    if torch.device(device).type == "cuda":
        return [rows_BD.pin_memory().to(device, non_blocking=True) for rows_BD in rows]
    return [rows_BD.to(device) for rows_BD in rows]


def validate(trainer: BaseTrainer, batches: Iterable[Batch], *scales: float) -> tuple[Reconstruction, float]:
    """A trainer's figures on rows in the units of the store, and its mean loss on them."""
    figures = _Figures()
    _measure([_Measured(trainer, scales, [figures])], batches, trainer.group)
    return figures.result(trainer.group)


def validate_all(runs: list[TrainingRun], batches: Iterable[Batch]) -> list[tuple[Reconstruction, float]]:
    """The same of every run, each batch read once."""
    figures = [_Figures() for _ in runs]
    measured = [_Measured(run.trainer, run.scales, [one]) for run, one in zip(runs, figures, strict=True)]
    _measure(measured, batches, runs[0].trainer.group)
    return [one.result(runs[0].trainer.group) for one in figures]


def measure(trainer: BaseTrainer, batches: Iterable[Batch], *scales: float) -> FinalFigures:
    """All figures of a finished trainer on rows in the units of the store, from one reading of them.

    Where rows are divided it is one process's work.
    """
    figures, histogram, agreement = _Figures(), _Histogram(), _Agreement()
    collectors: list[_Collector] = [figures, histogram]
    collectors += [] if trainer.training_dtype is None else [agreement]
    group = SINGLE_PROCESS if trainer.group.splits_rows else trainer.group
    _measure([_Measured(trainer, scales, collectors)], batches, group, exact=trainer.training_dtype is not None)
    share = None if trainer.training_dtype is None else agreement.result(group)
    return FinalFigures(figures.result(group)[0], histogram.result(group, trainer.d_sae), share)


class _Collector(Protocol):
    def add(self, trainer: BaseTrainer, rows: list[torch.Tensor], scales: tuple[float, ...], step: Step) -> None:
        """Take in one batch: `rows` in the units of the store, `step` what the trainer makes of them."""


@dataclass(frozen=True)
class _Measured:
    """A trainer, the factors of its rows, and what is collected of its steps."""

    trainer: BaseTrainer
    scales: tuple[float, ...]
    collectors: list[_Collector]


@torch.no_grad()
def _measure(measured: list[_Measured], batches: Iterable[Batch], group: ProcessGroup, exact: bool = False) -> None:
    """Show every batch to every trainer; an `exact` encoder multiplies in the precision of the rows."""
    device, rows_seen = measured[0].trainer.W_dec.device, 0
    with _evaluation([one.trainer for one in measured], exact):
        for whole in group.batches(prefetch(tensors(batch, device) for batch in batches)):
            rows_seen += len(whole[0])
            rows = [group.own_rows(rows_BD) for rows_BD in whole]
            for one in measured:
                step = one.trainer(*_scaled(rows, one.scales))
                for collector in one.collectors:
                    collector.add(one.trainer, rows, one.scales, step)
    if not rows_seen:
        raise LensaeError("there are no held-out rows to measure on", "collect more than one prompt")


@contextmanager
def _evaluation(trainers: list[BaseTrainer], exact: bool) -> Iterator[None]:
    """The trainers in evaluation; their encoders propose features in the precision that is fastest on their device."""
    for trainer in trainers:
        trainer.eval()
        if not exact and trainer.W_dec.dtype == torch.float32:
            trainer.product_dtype = kernels.screening_dtype(trainer.W_dec.device)
    try:
        yield
    finally:
        for trainer in trainers:
            trainer.product_dtype = None


def _scaled(rows: list[torch.Tensor], scales: tuple[float, ...]) -> list[torch.Tensor]:
    return [rows_BD * scale for rows_BD, scale in zip(rows, scales, strict=True)]


class _Figures:
    """The reconstruction's figures and the mean loss."""

    def __init__(self) -> None:
        self.sums: Accumulator | None = None
        self.loss, self.rows = 0.0, 0

    def add(self, trainer: BaseTrainer, rows: list[torch.Tensor], scales: tuple[float, ...], step: Step) -> None:
        target_BD = rows[-1]
        if self.sums is None:
            width = target_BD.shape[1]
            self.sums = Accumulator(width, step.features.shape[1], massive_norm_at(scales[-1], width))
        self.sums.add(target_BD, step.x_hat_BD / scales[-1], step.features.count_F())
        count = trainer.group.count_rows(len(target_BD))
        self.loss += float(torch.stack([*step.losses.values()]).sum()) * count
        self.rows += count

    def result(self, group: ProcessGroup) -> tuple[Reconstruction, float]:
        assert self.sums is not None, "no batch was measured"
        self.sums.join(group)
        return self.sums.result(), self.loss / self.rows


class _Histogram:
    """Activations by size, as the saved SAE gives them."""

    def __init__(self) -> None:
        self.counts, self.rows = np.zeros(BINS, np.int64), 0

    def add(self, trainer: BaseTrainer, rows: list[torch.Tensor], scales: tuple[float, ...], step: Step) -> None:
        value = trainer.as_saved(step.features) / scales[-1]
        self.counts += counted(value[value > 0].cpu().numpy())
        self.rows += len(rows[0])

    def result(self, group: ProcessGroup, d_sae: int) -> tuple[np.ndarray, int]:
        counts = group.sum_over_features(torch.from_numpy(self.counts)).numpy()
        return counts, self.rows * d_sae - int(counts.sum())


class _Agreement:
    """How many features the precision of the training selects, that of the rows selects, and both do."""

    def __init__(self) -> None:
        self.counts, self.rows = torch.zeros(3, dtype=torch.int64), 0

    def add(self, trainer: BaseTrainer, rows: list[torch.Tensor], scales: tuple[float, ...], step: Step) -> None:
        if self.rows >= AGREEMENT_ROWS:
            return
        trainer.product_dtype = trainer.training_dtype
        reduced_N, exact_N = trainer(*_scaled(rows, scales)).features.fires(), step.features.fires()
        trainer.product_dtype = None
        both = int(torch.isin(reduced_N, exact_N, assume_unique=True).sum())
        self.counts += torch.tensor([both, len(reduced_N), len(exact_N)])
        self.rows += len(rows[0])

    def result(self, group: ProcessGroup) -> float:
        both, *each = group.sum_over_features(self.counts).tolist()
        return both / max(*each, 1)
