"""How good an SAE is, streamed over rows of activations.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Reconstruction:
    """Figures over all rows seen (BOS and special tokens are not among them).

    explained_variance    1 - E||x - x_hat||^2 / (E||x||^2 - ||E x||^2)
    explained_variance_per_dim    the mean over dimensions of 1 - (squared error) / (variance) of each
    l0                    mean number of features that fire
    dead_share            share of features that never fire on these rows; dense_share: fire on more than 10 %
    cosine, shrinkage     means of cos(x, x_hat) and of ||x_hat|| / ||x||
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
    density: torch.Tensor


class Accumulator:
    """Sums in float64 over a stream of batches."""

    def __init__(self, d_model: int, d_sae: int):
        self.n = 0
        self.sum_D = torch.zeros(d_model, dtype=torch.float64)
        self.square_D = torch.zeros(d_model, dtype=torch.float64)
        self.error_D = torch.zeros(d_model, dtype=torch.float64)
        self.fired_F = torch.zeros(d_sae, dtype=torch.int64)
        self.cosine = self.shrinkage = 0.0

    def add(self, x_BD: torch.Tensor, x_hat_BD: torch.Tensor, features_BF: torch.Tensor) -> None:
        """Take one batch in."""
        x, x_hat = x_BD.detach().double().cpu(), x_hat_BD.detach().double().cpu()
        self.n += len(x)
        self.sum_D += x.sum(0)
        self.square_D += x.square().sum(0)
        self.error_D += (x - x_hat).square().sum(0)
        self.fired_F += (features_BF.detach() > 0).sum(0).cpu()
        norm, norm_hat = x.norm(dim=-1).clamp(min=1e-12), x_hat.norm(dim=-1)
        self.cosine += float(((x * x_hat).sum(-1) / (norm * norm_hat.clamp(min=1e-12))).sum())
        self.shrinkage += float((norm_hat / norm).sum())

    def result(self) -> Reconstruction:
        """The figures over everything taken in so far."""
        n = max(self.n, 1)
        variance_D = self.square_D / n - (self.sum_D / n).square()
        error_D = self.error_D / n
        per_dim = 1 - error_D / variance_D.clamp(min=1e-12)
        density_F = self.fired_F.double() / n
        return Reconstruction(
            self.n,
            float(error_D.mean()),
            float(1 - error_D.sum() / variance_D.sum().clamp(min=1e-12)),
            float(per_dim.mean()),
            float(density_F.sum()),
            float((self.fired_F == 0).double().mean()),
            float((density_F > 0.1).double().mean()),
            self.cosine / n,
            self.shrinkage / n,
            density_F.float(),
        )
