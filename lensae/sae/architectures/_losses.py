"""The reconstruction error as a loss, with massive activations weighed down.

Shapes: B rows, D d_model.
"""

from __future__ import annotations

import math

import torch

from lensae.sae.distributed.process_group import SINGLE_PROCESS, ProcessGroup


class _SquaredDistance(torch.autograd.Function):
    """|x - x_hat|^2 of each row (B,), with few passes over memory; the gradient goes to x_hat alone."""

    @staticmethod
    def forward(ctx, x_BD, x_hat_BD):
        difference_BD = x_hat_BD - x_BD
        ctx.save_for_backward(difference_BD)
        return torch.linalg.vector_norm(difference_BD, dim=-1).square()

    @staticmethod
    def backward(ctx, grad_B):
        [difference_BD] = ctx.saved_tensors
        return None, difference_BD * (2 * grad_B[:, None])


def weights(square_B: torch.Tensor, width: int, limit: float) -> torch.Tensor:
    """1 for rows of these squared norms up to `limit` times sqrt(width), the mean (0: for all); longer ones (massive
    activations: Sun et al. 2024) weigh so much less that their squared norm counts as that. A few of them can hold
    most of a batch's energy, and would be all that is learnt from it."""
    return ((limit**2 * width or math.inf) / square_B).clamp(max=1.0)


def unexplained(
    x_BD: torch.Tensor, x_hat_BD: torch.Tensor, group: ProcessGroup = SINGLE_PROCESS, limit: float = 0.0
) -> torch.Tensor:
    """Mean squared error over the variance of the whole batch, 1 less the share of variance explained; rows weigh as
    `weights` says."""
    square_B = torch.linalg.vector_norm(x_BD, dim=-1).square()
    weight_B = weights(square_B, x_BD.shape[1], limit)
    error_B = _SquaredDistance.apply(x_BD, x_hat_BD) * weight_B
    if (weight_B < 1).any():
        x_BD, square_B = x_BD * weight_B.sqrt()[:, None], square_B * weight_B
    spread = group.mean_over_rows(square_B) - group.mean_over_rows(x_BD).square().sum()
    return group.mean_over_rows(error_B) / spread.clamp(min=1e-12)
