"""What the training of every family shares.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lensae.sae import checkpoint, functional
from lensae.sae.base import SAE


@dataclass(frozen=True)
class Step:
    """One forward pass of a training batch: `losses` are named parts whose sum is minimised."""

    x_hat_BD: torch.Tensor
    features_BF: torch.Tensor
    losses: dict[str, torch.Tensor]


class DeadFeatures:
    """Tokens since each feature last fired; a feature silent for `window` tokens counts as dead."""

    def __init__(self, d_sae: int, window: int):
        self.silent_F = torch.zeros(d_sae, dtype=torch.long)
        self.window = window

    def saw(self, features_BF: torch.Tensor) -> None:
        """Take note of one batch."""
        self.silent_F = torch.where((features_BF > 0).any(0).cpu(), 0, self.silent_F + len(features_BF))

    @property
    def mask_F(self) -> torch.Tensor:
        """Which features are dead."""
        return self.silent_F >= self.window


class UnitDecoder(nn.Module):
    """The part of a trainer that keeps the rows of the decoder at unit norm."""

    W_dec: nn.Parameter

    def before_step(self) -> None:
        """Remove the part of the decoder's gradient that would only change its rows' norms."""
        grad, rows = self.W_dec.grad, self.W_dec.data
        grad -= (grad * rows).sum(-1, keepdim=True) * rows

    def after_step(self) -> None:
        """Bring the rows back to unit norm."""
        self.W_dec.data = functional.unit_rows(self.W_dec.data)


def fold(architecture: str, tensors: dict[str, torch.Tensor], scale: float, metadata: dict, **more) -> SAE:
    """The SAE for raw activations, from one trained on rows multiplied by `scale`.

    With unit-norm decoder rows only the biases (and thresholds) change: all are divided by `scale`, and features
    come out in the units of the raw activations.
    """
    shifted = ("b_enc", "b_dec", "threshold")
    folded = {n: (t.detach() / scale if n in shifted else t.detach().clone()) for n, t in tensors.items()}
    d_in, d_sae = folded["W_enc"].shape
    return SAE(checkpoint.config(architecture, d_in, d_sae, metadata, **more), folded)
