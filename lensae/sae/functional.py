"""The arithmetic of sparse autoencoders, without state.

Shapes: B rows, D d_model, F features, K active features.
"""

from __future__ import annotations

import torch


def topk(pre_BF: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k largest pre-activations of each row, and of those the positive ones; everything else is zero."""
    values_BK, index_BK = pre_BF.topk(min(k, pre_BF.shape[-1]), dim=-1, sorted=False)
    return torch.zeros_like(pre_BF).scatter_(-1, index_BK, values_BK.relu())


def jumprelu(pre_BF: torch.Tensor, threshold_F: torch.Tensor) -> torch.Tensor:
    """Pre-activations above their feature's threshold, everything else zero (Rajamanoharan et al. 2024)."""
    return pre_BF * (pre_BF > threshold_F)


def unit_rows(w_FD: torch.Tensor) -> torch.Tensor:
    """Each row divided by its Euclidean norm (a zero row stays zero)."""
    return w_FD / w_FD.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def geometric_median(x_BD: torch.Tensor, iterations: int = 100, tolerance: float = 1e-6) -> torch.Tensor:
    """The point with the least sum of distances to the rows, by Weiszfeld's iteration (D,)."""
    point_D = x_BD.mean(0)
    for _ in range(iterations):
        weight_B1 = 1 / (x_BD - point_D).norm(dim=1, keepdim=True).clamp(min=1e-8)
        moved_D = (x_BD * weight_B1).sum(0) / weight_B1.sum()
        if (moved_D - point_D).norm() <= tolerance * point_D.norm():
            return moved_D
        point_D = moved_D
    return point_D


def norm_scale(x_BD: torch.Tensor, limit: float = 0.0) -> float:
    """The factor that gives the rows a mean Euclidean norm of sqrt(D), where none counts for more than `limit` times
    their median (0: for all that it is)."""
    norm_B = x_BD.norm(dim=-1)
    if most := limit * float(norm_B.median()):
        norm_B = norm_B.clamp(max=most)
    return float(x_BD.shape[-1] ** 0.5 / norm_B.mean().clamp(min=1e-12))
