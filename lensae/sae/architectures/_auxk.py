"""AuxK: the loss that brings dead features back (Gao et al. 2024, appendix A.2).

Shapes: B rows, D d_model, F features, R some of them, K of these kept in a row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lensae.sae import kernels
from lensae.sae.architectures._losses import weights

if TYPE_CHECKING:
    from lensae.sae.architectures._base import BaseTrainer

# Entries of the dead features' pre-activations that one auxiliary loss uses: it takes about as many rows as that
# allows. More make a step longer and end no better (topk, batchtopk, 65 steps, F 4608); half as many leave more dead.
AUX_ENTRIES = 2**16
# It uses multiples of so many features, and at powers of two of rows: oneDNN makes a new product for every shape,
# which takes longer than these products themselves.
STEP = 64


class _Rows(torch.autograd.Function):
    """Rows of a matrix; their gradient says nothing of the others, so that it costs what they do."""

    @staticmethod
    def forward(ctx, W_FD, index_R):
        ctx.save_for_backward(index_R)
        ctx.shape = W_FD.shape
        return W_FD.index_select(0, index_R)

    @staticmethod
    def backward(ctx, grad_RD):
        [index_R] = ctx.saved_tensors
        pairs = (index_R[None], grad_RD, ctx.shape)
        return torch.sparse_coo_tensor(*pairs, is_coalesced=True, check_invariants=False), None


def aux_loss(trainer: BaseTrainer, x_BD: torch.Tensor, target_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> torch.Tensor:
    """AuxK (Gao et al. 2024, appendix A.2): how badly the best D / 2 dead features explain the error of the live ones,
    target - x_hat, relative to that error.

    It is estimated on the first rows when there are many dead features.
    """
    group, silent_F = trainer.group, trainer.dead.silent_F
    own_count = int(trainer.dead.mask_F.sum())
    count = group.count_features(own_count)
    if not count:
        return x_BD.new_zeros(())
    rows = group.own_row_count(2 ** math.ceil(math.log2(max(64, AUX_ENTRIES / count))))
    index_R = silent_F.topk(min(len(silent_F), math.ceil(own_count / STEP) * STEP)).indices.sort().values
    shift_D, W_FD, b_F = trainer.encoder()
    pre_BR = torch.addmm(b_F[index_R], x_BD[:rows] - shift_D, _Rows.apply(W_FD, index_R).T)
    pre_BR = pre_BR.relu() * trainer.dead.mask_F[index_R]
    k = min(trainer.d_model // 2 or 1, count)
    if k < count:
        best_BK = pre_BR.detach().topk(min(k, len(index_R)), dim=1).values
        pre_BR = pre_BR * (pre_BR >= kernels.kth_largest(best_BK, k, group))
    weight_B = weights(target_BD[:rows].square().sum(-1), target_BD.shape[1], trainer.recipe.norm_limit)
    error_BD = target_BD[:rows] - x_hat_BD[:rows]
    left_BD = error_BD - group.sum_over_features(pre_BR @ _Rows.apply(trainer.W_dec, index_R))
    left, error = (group.mean_over_rows(rows_BD.square().sum(-1) * weight_B) for rows_BD in (left_BD, error_BD))
    return torch.nan_to_num(left / error)
