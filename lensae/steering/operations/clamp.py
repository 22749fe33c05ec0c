"""The feature is set to the value, whatever it was."""

from __future__ import annotations

import torch

from lensae.sae.base import SAE


def delta(x: torch.Tensor, sae: SAE, feature: int, value: float) -> torch.Tensor:
    """(value - f(x)) times the feature's decoder row: (..., D)."""
    return (value - sae.encode(x)[..., feature : feature + 1]) * sae.W_dec[feature]
