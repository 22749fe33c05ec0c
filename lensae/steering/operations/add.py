"""The value times the feature's direction is added, whatever the feature was."""

from __future__ import annotations

import torch

from lensae.sae.base import SAE


def delta(x: torch.Tensor, sae: SAE, feature: int, value: float) -> torch.Tensor:
    """`value` times the feature's decoder row: (..., D)."""
    return (value * sae.W_dec[feature]).expand_as(x)
