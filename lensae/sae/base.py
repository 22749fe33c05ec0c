"""A sparse autoencoder as a function on raw activations.

Shapes: B rows (any leading shape), D d_model, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from lensae.sae import functional

# How each architecture of the SAELens 6 layout turns pre-activations into features.
ACTIVATIONS: Mapping[str, Callable] = {
    "standard": lambda pre, cfg, tensors: pre.relu(),
    "topk": lambda pre, cfg, tensors: functional.topk(pre, int(cfg["k"])),
    "jumprelu": lambda pre, cfg, tensors: functional.jumprelu(pre, tensors["threshold"]),
}


@dataclass(frozen=True)
class SAE:
    """Weights and the activation function that belongs to them: `cfg` is the dictionary of cfg.json.

    `tensors` holds W_enc (D, F), b_enc (F), W_dec (F, D), b_dec (D) and, for jumprelu, threshold (F).
    """

    cfg: dict
    tensors: dict[str, torch.Tensor] = field(repr=False)

    @property
    def d_in(self) -> int:
        """D, the width of the activations."""
        return int(self.cfg["d_in"])

    @property
    def d_sae(self) -> int:
        """F, the number of features."""
        return int(self.cfg["d_sae"])

    @property
    def W_dec(self) -> torch.Tensor:
        """The decoder (F, D): row i is the direction that feature i writes."""
        return self.tensors["W_dec"]

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """(x - b_dec) W_enc + b_enc: (..., D) -> (..., F)."""
        t = self.tensors
        shift = t["b_dec"] if self.cfg.get("apply_b_dec_to_input", True) else 0
        return (x - shift) @ t["W_enc"] + t["b_enc"]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Features of raw activations: (..., D) -> (..., F), in the units of the activations."""
        return ACTIVATIONS[self.cfg["architecture"]](self.pre_activations(x), self.cfg, self.tensors)

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        """The reconstruction f W_dec + b_dec: (..., F) -> (..., D)."""
        return features @ self.W_dec + self.tensors["b_dec"]

    def to(self, device: str) -> SAE:
        """The same SAE with its tensors on `device`."""
        return SAE(self.cfg, {name: tensor.to(device) for name, tensor in self.tensors.items()})
