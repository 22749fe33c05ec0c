"""Gated: gates decide which features fire, and an L1 penalty shrinks the gates alone (--l1, or --target-l0;
Rajamanoharan et al. 2024).

One half of the encoder decides which features fire, the other how strongly ("Improving dictionary learning with gated
sparse autoencoders").

Shapes: B rows, D d_model, F features, R some of the features.
"""

from __future__ import annotations

import torch
from torch import nn

from lensae.sae import kernels
from lensae.sae.architectures._base import Step
from lensae.sae.architectures._sparsity import L1Trainer


class Trainer(L1Trainer):
    """Loss: mean squared error over the batch's variance; the L1 weight times the mean over the batch of the gates'
    positive parts' sum over sqrt(D); the error of the gates' own reconstruction through a decoder that does not learn
    from it (equation 8).

    The gate is x W + b_gate, the magnitude x (W exp(r_mag)) + b_mag.
    """

    saved_as = "gated"
    unscaled = ("r_mag",)

    def add_parameters(self) -> None:
        """The magnitude's own bias and logarithmic scale."""
        super().add_parameters()
        self.r_mag = nn.Parameter(torch.zeros_like(self.b_enc))
        self.b_mag = nn.Parameter(torch.zeros_like(self.b_enc))

    @torch.no_grad()
    def initialise(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> None:
        """As all families; then the gates are set so that each is open on a small share of the rows."""
        super().initialise(x_BD, target_BD)
        self.start_sparse(x_BD)

    def reset_features(self, feature_R: torch.Tensor, x_BD: torch.Tensor) -> None:
        """As at the start of a training: each fires on a small share of the rows."""
        self.start_sparse(x_BD, feature_R)
        self.r_mag.data[feature_R] = self.b_mag.data[feature_R] = 0.0

    def forward(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> Step:
        """Reconstruct a batch, or predict its targets."""
        target_BD = x_BD if target_BD is None else target_BD
        gate = kernels.encode_above(x_BD, *self.encoder(), density=self.density, dtype=self.product_dtype)
        b_enc, b_mag, factor = (gate.per_pair(p_F) for p_F in (self.b_enc, self.b_mag, self.r_mag.exp()))
        magnitude = (gate.value - b_enc) * factor + b_mag
        features = gate.with_value(magnitude.relu() * (gate.value > 0))
        x_hat_BD = self.decode(features)
        losses = {"mse": self.unexplained(target_BD, x_hat_BD)}
        opened = gate.with_value(gate.value.relu())
        losses |= self.penalty(self.mean_per_row(opened.value, len(x_BD)), features)
        if self.training:
            alone_BD = self.decode(opened, frozen=True)
            losses["gate"] = self.unexplained(target_BD, alone_BD)
        return Step(x_hat_BD, features, losses)

    def vectors(self) -> dict[str, torch.Tensor]:
        """The biases of gate and magnitude, and the magnitude's logarithmic scale."""
        return {"b_gate": self.b_enc, "b_mag": self.b_mag, "r_mag": self.r_mag}

    def fold_centre(self, vectors: dict[str, torch.Tensor], shift_F: torch.Tensor) -> dict[str, torch.Tensor]:
        """As in all families; the magnitudes' product is exp(r_mag) times that of the gates."""
        b_gate, b_mag = vectors["b_gate"] - shift_F, vectors["b_mag"] - shift_F * vectors["r_mag"].exp()
        return vectors | {"b_gate": b_gate, "b_mag": b_mag}
