"""The feature is switched off wherever it fires."""

from __future__ import annotations

import torch

from lensae.sae.base import SAE

takes_value = False


def delta(x: torch.Tensor, sae: SAE, feature: int, value: float) -> torch.Tensor:
    """-f(x) times the feature's decoder row: (..., D)."""
    return -sae.encode(x)[..., feature : feature + 1] * sae.W_dec[feature]
