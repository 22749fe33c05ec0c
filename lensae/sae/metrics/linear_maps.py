"""What a transcoder is compared with: the best linear maps from what it reads to what it predicts.

Shapes: B rows, D width of the input, O width of the target, K rank,
V directions in which the inputs vary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LinearMap:
    """y = mean_O + (x - mean_D) into_DK out_KO."""

    mean_D: torch.Tensor
    mean_O: torch.Tensor
    into_DK: torch.Tensor
    out_KO: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The prediction (..., O) of x (..., D)."""
        return (x - self.mean_D) @ self.into_DK @ self.out_KO + self.mean_O

    def to(self, device: str) -> LinearMap:
        """The same with its tensors on `device`."""
        return LinearMap(*(tensor.to(device) for tensor in vars(self).values()))


class JointMoments:
    """The means of two streams of rows, the covariance of the first and the covariance between them, in float64.

    Batches are centred on their own means and combined as lensae.sae.metrics.baselines.Covariance does it.
    """

    def __init__(self, d_in: int, d_out: int):
        self.n = 0
        self.mean_D = torch.zeros(d_in, dtype=torch.float64)
        self.mean_O = torch.zeros(d_out, dtype=torch.float64)
        self.products_DD = torch.zeros(d_in, d_in, dtype=torch.float64)
        self.products_DO = torch.zeros(d_in, d_out, dtype=torch.float64)

    def add(self, x_BD: torch.Tensor, y_BO: torch.Tensor) -> None:
        """Take one batch of pairs in."""
        x, y, n = x_BD.cpu().double(), y_BO.cpu().double(), len(x_BD)
        if not n:
            return
        centred = x - x.mean(0)
        shift_D, shift_O, weight = x.mean(0) - self.mean_D, y.mean(0) - self.mean_O, self.n * n / (self.n + n)
        self.products_DD += centred.T @ centred + weight * torch.outer(shift_D, shift_D)
        self.products_DO += centred.T @ (y - y.mean(0)) + weight * torch.outer(shift_D, shift_O)
        self.mean_D += shift_D * (n / (self.n + n))
        self.mean_O += shift_O * (n / (self.n + n))
        self.n += n

    def linear_map(self, rank: int | None = None) -> LinearMap:
        """The map with the least squared error, of rank K at most when one is given.

        Reduced-rank regression with the identity as weight (Izenman 1975, "Reduced-rank regression for the
        multivariate linear model", section 2): ordinary least squares W = S_xx^-1 S_xy, followed by the projection
        onto the first K eigenvectors of S_yx S_xx^-1 S_xy, the covariance of its predictions. Directions in which the
        inputs do not vary take no part.
        """
        variance_D, vectors_DD = torch.linalg.eigh(self.products_DD)
        least = variance_D[-1].clamp(min=0) * len(variance_D) * torch.finfo(torch.float64).eps
        keep = variance_D > least
        vectors_DV = vectors_DD[:, keep]
        along_VO = (vectors_DV.T @ self.products_DO) / variance_D[keep, None]
        predicted_OO = along_VO.T @ (variance_D[keep, None] * along_VO)
        _size, directions_OO = torch.linalg.eigh(predicted_OO)
        out_OK = directions_OO.flip(1)[:, : rank if rank is not None else None]
        into_DK = vectors_DV @ (along_VO @ out_OK)
        tensors = (self.mean_D, self.mean_O, into_DK, out_OK.T)
        return LinearMap(*(tensor.float().contiguous() for tensor in tensors))
