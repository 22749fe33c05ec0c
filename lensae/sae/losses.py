"""Parts of the loss that several families share.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lensae.sae import kernels
from lensae.sae.world import ALONE, World

if TYPE_CHECKING:
    from lensae.sae.training import Coder

# Entries of the dead features' pre-activations that one auxiliary loss looks at: it takes as many rows as that allows.
# Eight times as many make a step of topk a tenth longer and end no better (topk, batchtopk, 65 steps, F 4608).
AUX_ENTRIES = 2**18


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


def unexplained(x_BD: torch.Tensor, x_hat_BD: torch.Tensor, world: World = ALONE) -> torch.Tensor:
    """Mean squared error over the variance of the whole batch: 1 less the share of variance explained."""
    spread_B = torch.linalg.vector_norm(x_BD - world.mean(x_BD), dim=-1).square()
    return world.mean(_SquaredDistance.apply(x_BD, x_hat_BD)) / world.mean(spread_B).clamp(min=1e-12)


def aux_loss(coder: Coder, x_BD: torch.Tensor, target_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> torch.Tensor:
    """AuxK (Gao et al. 2024, appendix A.2): how badly the best D / 2 dead features explain the error of the live ones,
    target - x_hat, relative to that error.

    It is estimated on the first rows when there are many dead features.
    """
    dead = coder.dead.mask_F.nonzero().view(-1)
    world = coder.world
    count = world.features(len(dead))
    if not count:
        return x_BD.new_zeros(())
    rows = world.own(max(64, AUX_ENTRIES // count))
    shift_D, W_FD, b_F = coder.encoder()
    pre = torch.addmm(b_F[dead], x_BD[:rows] - shift_D, W_FD[dead].T)
    k = min(coder.d_model // 2 or 1, count)
    if k < count:
        best = pre.detach().topk(min(k, len(dead)), dim=1).values
        pre = pre * (pre >= kernels.kth_largest(best, k, world))
    error = target_BD[:rows] - x_hat_BD[:rows]
    left = world.mean((error - world.over_features(pre.relu() @ coder.W_dec[dead])).square().sum(-1))
    return torch.nan_to_num(left / world.mean(error.square().sum(-1)))
