"""Parts of the loss that several families share.

Shapes: B rows, D d_model, F features, R some of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lensae.sae import kernels
from lensae.sae.world import ALONE, World

if TYPE_CHECKING:
    from lensae.sae.training import Coder

# Entries of the dead features' pre-activations that one auxiliary loss looks at: it takes about as many rows as that
# allows. More make a step longer and end no better (topk, batchtopk, 65 steps, F 4608); half as many leave more dead.
AUX_ENTRIES = 2**16
# It looks at multiples of so many features, and at powers of two of rows: oneDNN makes a new product for every shape,
# which takes longer than these products themselves.
STEP = 64


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


class _Some(torch.autograd.Function):
    """Rows of a matrix; their gradient says nothing of the others, so that it costs what they do."""

    @staticmethod
    def forward(ctx, W_FD, index_R):
        ctx.save_for_backward(index_R)
        ctx.shape = W_FD.shape
        return W_FD.index_select(0, index_R)

    @staticmethod
    def backward(ctx, grad_RD):
        [index_R] = ctx.saved_tensors
        found = (index_R[None], grad_RD, ctx.shape)
        return torch.sparse_coo_tensor(*found, is_coalesced=True, check_invariants=False), None


def weights(square_B: torch.Tensor, width: int, limit: float) -> torch.Tensor:
    """1 for rows of these squared norms up to `limit` times sqrt(width), the mean (0: for all); longer ones (massive
    activations: Sun et al. 2024) weigh so much less that their squared norm counts as that. A few of them can hold
    most of a batch's energy, and would be all that is learnt from it."""
    return ((limit**2 * width or math.inf) / square_B).clamp(max=1.0)


def unexplained(x_BD: torch.Tensor, x_hat_BD: torch.Tensor, world: World = ALONE, limit: float = 0.0) -> torch.Tensor:
    """Mean squared error over the variance of the whole batch, 1 less the share of variance explained; rows weigh as
    `weights` says."""
    square_B = torch.linalg.vector_norm(x_BD, dim=-1).square()
    weight_B = weights(square_B, x_BD.shape[1], limit)
    error_B = _SquaredDistance.apply(x_BD, x_hat_BD) * weight_B
    if (weight_B < 1).any():
        x_BD, square_B = x_BD * weight_B.sqrt()[:, None], square_B * weight_B
    spread = world.mean(square_B) - world.mean(x_BD).square().sum()
    return world.mean(error_B) / spread.clamp(min=1e-12)


def aux_loss(coder: Coder, x_BD: torch.Tensor, target_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> torch.Tensor:
    """AuxK (Gao et al. 2024, appendix A.2): how badly the best D / 2 dead features explain the error of the live ones,
    target - x_hat, relative to that error.

    It is estimated on the first rows when there are many dead features.
    """
    world, silent_F = coder.world, coder.dead.silent_F
    here = int(coder.dead.mask_F.sum())
    count = world.features(here)
    if not count:
        return x_BD.new_zeros(())
    rows = world.own(2 ** math.ceil(math.log2(max(64, AUX_ENTRIES / count))))
    index_R = silent_F.topk(min(len(silent_F), math.ceil(here / STEP) * STEP)).indices.sort().values
    shift_D, W_FD, b_F = coder.encoder()
    pre_BR = torch.addmm(b_F[index_R], x_BD[:rows] - shift_D, _Some.apply(W_FD, index_R).T)
    pre_BR = pre_BR.relu() * coder.dead.mask_F[index_R]
    k = min(coder.d_model // 2 or 1, count)
    if k < count:
        best_BK = pre_BR.detach().topk(min(k, len(index_R)), dim=1).values
        pre_BR = pre_BR * (pre_BR >= kernels.kth_largest(best_BK, k, world))
    weight_B = weights(target_BD[:rows].square().sum(-1), target_BD.shape[1], coder.recipe.norm_limit)
    error_BD = target_BD[:rows] - x_hat_BD[:rows]
    left_BD = error_BD - world.over_features(pre_BR @ _Some.apply(coder.W_dec, index_R))
    left, error = (world.mean(part_BD.square().sum(-1) * weight_B) for part_BD in (left_BD, error_BD))
    return torch.nan_to_num(left / error)
