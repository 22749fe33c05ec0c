"""Parts of the loss that several families share.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lensae.sae.training import Coder

# Entries of the dead features' pre-activations that one auxiliary loss looks at: it takes as many rows as that allows.
AUX_ENTRIES = 2**21


def unexplained(x_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the batch's variance: 1 less the share of variance explained."""
    variance = (x_BD - x_BD.mean(0)).square().sum(-1).mean().clamp(min=1e-12)
    return (x_BD - x_hat_BD).square().sum(-1).mean() / variance


def aux_loss(coder: Coder, x_BD: torch.Tensor, error_BD: torch.Tensor) -> torch.Tensor:
    """AuxK (Gao et al. 2024, appendix A.2): how badly the best D / 2 dead features explain the error of the live ones,
    relative to that error.

    It is estimated on the first rows when there are many dead features.
    """
    dead = coder.dead.mask_F.nonzero().view(-1)
    if not len(dead):
        return x_BD.new_zeros(())
    rows = max(64, AUX_ENTRIES // len(dead))
    shift_D, W_FD, b_F = coder.encoder()
    pre = torch.addmm(b_F[dead], x_BD[:rows] - shift_D, W_FD[dead].T)
    k = min(coder.d_model // 2 or 1, len(dead))
    if k < len(dead):
        pre = pre * (pre >= pre.detach().topk(k, dim=1).values.amin(1, keepdim=True))
    error = error_BD[:rows].detach()
    left = (error - pre.relu() @ coder.W_dec[dead]).square().sum(-1).mean()
    return torch.nan_to_num(left / error.square().sum(-1).mean())
