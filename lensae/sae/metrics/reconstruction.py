"""How good an SAE is, streamed over rows of activations.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lensae.sae import functional
from lensae.sae.distributed.process_group import ProcessGroup

TINY = 1e-12
BLOCK_ROWS = 512  # taken in at a time: twice as fast as whole batches, which do not fit into a processor's cache
# What row_figures gives of each row.
ROWS, ERROR, SPREAD, RATIO, ACTIVE = range(5)


@dataclass(frozen=True)
class Reconstruction:
    """Figures over all rows seen (BOS and special tokens are not among them).

    mse                   mean over rows and dimensions of (x - x_hat)^2
    explained_variance    1 - E||x - x_hat||^2 / (E||x||^2 - ||E x||^2), over all rows at once
                          (SAELens 6: evals.ExplainedVarianceCalculator)
    explained_variance_per_dim    the mean over dimensions of 1 - (squared error) / (variance) of each (the uniform
                          average of scikit-learn's r2_score): every dimension counts the same, however small
    l0                    mean number of features that fire
    dead_share            share of features that never fire on these rows; dense_share: fire on more than 10 %
    cosine, shrinkage     means of cos(x, x_hat) and of ||x_hat|| / ||x||
    relative_bias         E||x_hat||^2 / E[x_hat . x]: the factor by which x_hat is too long (below 1: too short), so
                          that x_hat over it has the least error (Rajamanoharan et al. 2024, "Improving dictionary
                          learning with gated sparse autoencoders", equation 10)
    density               (F,) share of rows on which each feature fires
    """

    rows: int
    mse: float
    explained_variance: float
    explained_variance_per_dim: float
    l0: float
    dead_share: float
    dense_share: float
    cosine: float
    shrinkage: float
    relative_bias: float
    density: torch.Tensor


class Accumulator:
    """Sums in float64 over a stream of batches."""

    def __init__(self, d_model: int, d_sae: int):
        self.n = 0
        self.sum_D = torch.zeros(d_model, dtype=torch.float64)
        self.square_D = torch.zeros(d_model, dtype=torch.float64)
        self.error_D = torch.zeros(d_model, dtype=torch.float64)
        self.fired_F = torch.zeros(d_sae, dtype=torch.int64)
        self.cosine = self.shrinkage = self.square_hat = self.product = 0.0

    def add(self, x_BD: torch.Tensor, x_hat_BD: torch.Tensor, count_F: torch.Tensor) -> None:
        """Take one batch in; `count_F` int64 is on how many of its rows each feature fires."""
        self.fired_F += count_F.cpu()
        blocks = (rows_BD.detach().cpu().split(BLOCK_ROWS) for rows_BD in (x_BD, x_hat_BD))
        for x, x_hat in zip(*blocks, strict=True):
            self._add_rows(x.double(), x_hat.double())

    def _add_rows(self, x: torch.Tensor, x_hat: torch.Tensor) -> None:
        self.n += len(x)
        self.sum_D += x.sum(0)
        self.square_D += x.square().sum(0)
        self.error_D += (x - x_hat).square().sum(0)
        norm, norm_hat, product = x.norm(dim=-1).clamp(min=TINY), x_hat.norm(dim=-1), (x * x_hat).sum(-1)
        self.cosine += float((product / (norm * norm_hat.clamp(min=TINY))).sum())
        self.shrinkage += float((norm_hat / norm).sum())
        self.square_hat += float(norm_hat.square().sum())
        self.product += float(product.sum())

    def join(self, group: ProcessGroup) -> None:
        """Take in what the other processes have seen."""
        scalars = torch.tensor([self.cosine, self.shrinkage, self.square_hat, self.product], dtype=torch.float64)
        if group.splits_rows:
            self.n = group.count_rows(self.n)
            for sums in (self.sum_D, self.square_D, self.error_D, self.fired_F, scalars):
                group.all_reduce(sums)
            self.cosine, self.shrinkage, self.square_hat, self.product = scalars.tolist()
        if group.splits_features:
            self.fired_F = torch.cat(group.all_gather(self.fired_F))

    def result(self) -> Reconstruction:
        """The figures over everything taken in so far."""
        n = max(self.n, 1)
        variance_D = self.square_D / n - (self.sum_D / n).square()
        error_D = self.error_D / n
        per_dim = 1 - error_D / variance_D.clamp(min=TINY)
        density_F = self.fired_F.double() / n
        return Reconstruction(
            self.n,
            float(error_D.mean()),
            float(1 - error_D.sum() / variance_D.sum().clamp(min=TINY)),
            float(per_dim.mean()),
            float(density_F.sum()),
            float((self.fired_F == 0).double().mean()),
            float((density_F > 0.1).double().mean()),
            self.cosine / n,
            self.shrinkage / n,
            self.square_hat / self.product if self.product else float("nan"),
            density_F.float(),
        )


def row_figures(
    x_BD: torch.Tensor, x_hat_BD: torch.Tensor, active_B: torch.Tensor, mean_D: torch.Tensor
) -> torch.Tensor:
    """What is summed over the rows of a group (B, 5) float64: 1, ||x - x_hat||^2, ||x - mean||^2, the second over the
    third, and the number of features that fire.

    `mean_D` is the mean over every row of the evaluation.
    """
    x, x_hat = x_BD.double(), x_hat_BD.double()
    error_B, spread_B = (x - x_hat).square().sum(-1), (x - mean_D).square().sum(-1)
    ratio_B = error_B / spread_B.clamp(min=TINY)
    return torch.stack([torch.ones_like(error_B), error_B, spread_B, ratio_B, active_B.double()], dim=-1)


def explained_variance(sums: np.ndarray) -> np.ndarray:
    """1 - E||x - x_hat||^2 / E||x - mean||^2 from sums (..., 5) of row_figures.

    Over all groups it is Reconstruction.explained_variance; in a resample the mean stays that of the whole evaluation.
    """
    return 1 - sums[..., ERROR] / sums[..., SPREAD]


def explained_variance_per_token(sums: np.ndarray) -> np.ndarray:
    """The mean over tokens of 1 - ||x - x_hat||^2 / ||x - mean||^2, from sums (..., 5) of row_figures.

    SAEBench's core evaluation calls it explained_variance, SAELens 6 explained_variance_legacy; both take the mean
    over each batch, here it is that of the whole evaluation. Tokens near the mean weigh most.
    """
    return 1 - sums[..., RATIO] / sums[..., ROWS]


def mean_active(sums: np.ndarray) -> np.ndarray:
    """L0 from sums (..., 5) of row_figures."""
    return sums[..., ACTIVE] / sums[..., ROWS]


def nearest_cosine(w_FD: torch.Tensor, block: int = 2048) -> torch.Tensor:
    """The largest cosine of each row with any other row (F,), `block` x `block` products at a time."""
    rows, best_F = functional.unit_rows(w_FD.float()), w_FD.new_full((len(w_FD),), -1.0, dtype=torch.float32)
    for i in range(0, len(rows), block):
        for j in range(i, len(rows), block):
            cosine = rows[i : i + block] @ rows[j : j + block].T
            if i == j:
                cosine.fill_diagonal_(-1.0)
            torch.maximum(best_F[i : i + block], cosine.amax(1), out=best_F[i : i + block])
            if i != j:
                torch.maximum(best_F[j : j + block], cosine.amax(0), out=best_F[j : j + block])
    return best_F.clamp(-1, 1)
