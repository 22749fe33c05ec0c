"""What the kernels compute, in plain dense formulas with autograd's own gradients; `topk` is that of the saved SAE.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

import torch

from lensae.sae.functional import topk

__all__ = ["above", "batch_topk", "decode", "pre_activations", "topk"]


def pre_activations(x_BD, shift_D, W_FD, b_F) -> torch.Tensor:
    """(x - shift) W^T + b (B, F)."""
    return (x_BD - shift_D) @ W_FD.T + b_F


def batch_topk(pre_BF: torch.Tensor, k: int) -> torch.Tensor:
    """The B k largest of the batch, of those the positive ones, all else zero (Bussmann et al. 2024)."""
    value, index = pre_BF.reshape(-1).topk(len(pre_BF) * min(k, pre_BF.shape[1]))
    return torch.zeros_like(pre_BF).view(-1).scatter(0, index, value.relu()).view_as(pre_BF)


def above(pre_BF: torch.Tensor, floor) -> torch.Tensor:
    """What is above the floor, all else zero."""
    return pre_BF * (pre_BF > floor)


def decode(features_BF: torch.Tensor, W_FD: torch.Tensor, b_D: torch.Tensor) -> torch.Tensor:
    """f W + b (B, D)."""
    return features_BF @ W_FD + b_D
