"""How good an SAE is, streamed over rows of activations.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lensae.core.recipe import MASSIVE
from lensae.sae import functional
from lensae.sae.distributed.process_group import ProcessGroup

TINY = 1e-12
BLOCK_ROWS = 512  # taken in at a time: twice as fast as whole batches, which do not fit into a processor's cache
# What row_figures gives of each row.
ROWS, ERROR, SPREAD, RATIO, ACTIVE, TYPICAL_ERROR, TYPICAL_SPREAD = range(7)


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Figures over all rows seen (BOS and special tokens are not among them); those that are ratios of sums over rows
    also over typical rows, those that are not massive: a few massive ones hold much of all energy, and decide such
    ratios (Sun et al. 2024, "Massive activations in large language models").

    massive_rows          how many rows are massive: of a norm above MASSIVE times the mean norm
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
    massive_rows: int
    mse: float
    explained_variance_typical: float
    explained_variance: float
    explained_variance_per_dim_typical: float
    explained_variance_per_dim: float
    l0: float
    dead_share: float
    dense_share: float
    cosine: float
    shrinkage: float
    relative_bias_typical: float
    relative_bias: float
    density: torch.Tensor


def massive_norm(x_BD: torch.Tensor) -> float:
    """The norm above which a row is massive, from a sample of rows: in their mean norm none counts for more than
    MASSIVE times the median. That is the mean which training gives the value sqrt(D) (functional.norm_scale)."""
    return massive_norm_at(functional.norm_scale(x_BD, MASSIVE), x_BD.shape[-1])


def massive_norm_at(scale: float, width: int) -> float:
    """The same, where `scale` gives the rows a mean norm of sqrt(width)."""
    return MASSIVE * width**0.5 / scale


class Moments:
    """Sums over some rows, float64: of x, x^2 and (x - x_hat)^2 by dimension, of ||x_hat||^2 and of x . x_hat."""

    def __init__(self, d_model: int):
        self.n = 0
        self.sum_D, self.square_D, self.error_D = torch.zeros(3, d_model, dtype=torch.float64)
        self.lengths = torch.zeros(2, dtype=torch.float64)

    def add(self, x: torch.Tensor, x_hat: torch.Tensor, square_hat_B: torch.Tensor, product_B: torch.Tensor) -> None:
        """Take in rows (B, D) float64, the squared norms of x_hat, and x . x_hat."""
        self.n += len(x)
        self.sum_D += x.sum(0)
        self.square_D += x.square().sum(0)
        self.error_D += (x - x_hat).square().sum(0)
        self.lengths += torch.stack([square_hat_B.sum(), product_B.sum()])

    def __add__(self, other: Moments) -> Moments:
        """The sums over the rows of both."""
        both = Moments(len(self.sum_D))
        both.n = self.n + other.n
        for name in ("sum_D", "square_D", "error_D", "lengths"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def join(self, group: ProcessGroup) -> None:
        """Take in what the other processes have seen."""
        self.n = group.count_rows(self.n)
        for sums in (self.sum_D, self.square_D, self.error_D, self.lengths):
            group.all_reduce(sums)

    def figures(self) -> dict[str, float]:
        """The figures of Reconstruction that are ratios of sums over rows."""
        n = max(self.n, 1)
        variance_D, error_D = self.square_D / n - (self.sum_D / n).square(), self.error_D / n
        square_hat, product = self.lengths.tolist()
        return {
            "explained_variance": float(1 - error_D.sum() / variance_D.sum().clamp(min=TINY)),
            "explained_variance_per_dim": float((1 - error_D / variance_D.clamp(min=TINY)).mean()),
            "relative_bias": square_hat / product if product else float("nan"),
        }


class Accumulator:
    """Sums in float64 over a stream of batches; rows of a norm above `massive_norm` are massive."""

    def __init__(self, d_model: int, d_sae: int, massive_norm: float):
        self.massive_norm = massive_norm
        self.typical, self.massive = Moments(d_model), Moments(d_model)
        self.fired_F = torch.zeros(d_sae, dtype=torch.int64)
        self.means = torch.zeros(2, dtype=torch.float64)  # the sums of the cosines and of ||x_hat|| / ||x||

    def add(self, x_BD: torch.Tensor, x_hat_BD: torch.Tensor, count_F: torch.Tensor) -> None:
        """Take one batch in; `count_F` int64 is on how many of its rows each feature fires."""
        self.fired_F += count_F.cpu()
        blocks = (rows_BD.detach().cpu().split(BLOCK_ROWS) for rows_BD in (x_BD, x_hat_BD))
        for x, x_hat in zip(*blocks, strict=True):
            self._add_rows(x.double(), x_hat.double())

    def _add_rows(self, x: torch.Tensor, x_hat: torch.Tensor) -> None:
        norm_B, square_hat_B, product_B = x.norm(dim=-1), x_hat.square().sum(-1), (x * x_hat).sum(-1)
        rows = [x, x_hat, square_hat_B, product_B]
        massive_B = norm_B > self.massive_norm
        if massive_B.any():
            self.massive.add(*(part[massive_B] for part in rows))
            rows = [part[~massive_B] for part in rows]
        self.typical.add(*rows)
        norm_B, norm_hat_B = norm_B.clamp(min=TINY), square_hat_B.sqrt()
        cosine_B = product_B / (norm_B * norm_hat_B.clamp(min=TINY))
        self.means += torch.stack([cosine_B.sum(), (norm_hat_B / norm_B).sum()])

    def join(self, group: ProcessGroup) -> None:
        """Take in what the other processes have seen."""
        if group.splits_rows:
            self.typical.join(group)
            self.massive.join(group)
            group.all_reduce(self.fired_F)
            group.all_reduce(self.means)
        if group.splits_features:
            self.fired_F = torch.cat(group.all_gather(self.fired_F))

    def result(self) -> Reconstruction:
        """The figures over everything taken in so far."""
        every = self.typical + self.massive
        n = max(every.n, 1)
        density_F = self.fired_F.double() / n
        cosine, shrinkage = (self.means / n).tolist()
        return Reconstruction(
            rows=every.n,
            massive_rows=self.massive.n,
            mse=float(every.error_D.mean() / n),
            l0=float(density_F.sum()),
            dead_share=float((self.fired_F == 0).double().mean()),
            dense_share=float((density_F > 0.1).double().mean()),
            cosine=cosine,
            shrinkage=shrinkage,
            density=density_F.float(),
            **every.figures(),
            **{f"{name}_typical": value for name, value in self.typical.figures().items()},
        )


@dataclass(frozen=True, kw_only=True)
class RowMeans:
    """What the rows of an evaluation vary around: the mean (D,) of all of them, and of those that are not massive, of a
    norm up to `massive_norm`."""

    mean_D: torch.Tensor
    typical_mean_D: torch.Tensor
    massive_norm: float


def row_figures(x_BD: torch.Tensor, x_hat_BD: torch.Tensor, active_B: torch.Tensor, means: RowMeans) -> torch.Tensor:
    """What is summed over the rows of a group (B, 7) float64: 1, ||x - x_hat||^2, ||x - mean||^2, the second over the
    third, the number of features that fire, and of typical rows the second, and ||x - mean||^2 for their own mean."""
    x, x_hat = x_BD.double(), x_hat_BD.double()
    error_B, spread_B, typical_spread_B = (
        (x - other).square().sum(-1) for other in (x_hat, means.mean_D, means.typical_mean_D)
    )
    typical_B = x.norm(dim=-1) <= means.massive_norm
    ratio_B = error_B / spread_B.clamp(min=TINY)
    one_B, active_B = torch.ones_like(error_B), active_B.double()
    figures = (one_B, error_B, spread_B, ratio_B, active_B, error_B * typical_B, typical_spread_B * typical_B)
    return torch.stack(figures, dim=-1)


def explained_variance(sums: np.ndarray) -> np.ndarray:
    """1 - E||x - x_hat||^2 / E||x - mean||^2 from sums (..., 7) of row_figures.

    Over all groups it is Reconstruction.explained_variance; in a resample the mean stays that of the whole evaluation.
    """
    return 1 - sums[..., ERROR] / sums[..., SPREAD]


def explained_variance_typical(sums: np.ndarray) -> np.ndarray:
    """The same of typical rows."""
    return 1 - sums[..., TYPICAL_ERROR] / sums[..., TYPICAL_SPREAD]


def explained_variance_per_token(sums: np.ndarray) -> np.ndarray:
    """The mean over tokens of 1 - ||x - x_hat||^2 / ||x - mean||^2, from sums (..., 7) of row_figures.

    SAEBench's core evaluation calls it explained_variance, SAELens 6 explained_variance_legacy; both take the mean
    over each batch, here it is that of the whole evaluation. Tokens near the mean weigh most.
    """
    return 1 - sums[..., RATIO] / sums[..., ROWS]


def mean_active(sums: np.ndarray) -> np.ndarray:
    """L0 from sums (..., 7) of row_figures."""
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
