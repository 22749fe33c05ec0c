"""Tied L1: one matrix for encoder and decoder, unit-norm rows, ReLU, L1 penalty (Cunningham et al. 2023, "Sparse
autoencoders find highly interpretable features in language models").

The rows are centred on their geometric median, which stays fixed; saved in the layout's "standard" architecture.
Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

import torch
from torch import nn

from lensae.recipe import TrainRecipe
from lensae.sae import functional
from lensae.sae.base import SAE
from lensae.sae.training import Step, UnitDecoder, fold


class Trainer(UnitDecoder):
    """Loss: mean squared error over the batch's variance, plus `recipe.l1` times the mean over the batch of the
    features' sum over sqrt(D) (the rows have a mean norm of sqrt(D), so the weight does not depend on the model)."""

    def __init__(self, d_model: int, d_sae: int, recipe: TrainRecipe, dead_window: int):
        super().__init__()
        self.l1, self.d_model = recipe.l1, d_model
        self.W_dec = nn.Parameter(functional.unit_rows(torch.randn(d_sae, d_model)))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.register_buffer("b_dec", torch.zeros(d_model))

    def initialise(self, x_BD: torch.Tensor) -> None:
        """Centre at the geometric median; rows start as directions of the data, which no feature starts out dead to."""
        self.b_dec = functional.geometric_median(x_BD)
        index = torch.randperm(len(x_BD))[: len(self.W_dec)]
        rows = functional.unit_rows(x_BD[index] - self.b_dec)
        self.W_dec.data[: len(rows)] = functional.unit_rows(0.5 * rows + 0.5 * self.W_dec.data[: len(rows)])

    def forward(self, x_BD: torch.Tensor) -> Step:
        """Reconstruct a batch."""
        features_BF = ((x_BD - self.b_dec) @ self.W_dec.T + self.b_enc).relu()
        x_hat_BD = features_BF @ self.W_dec + self.b_dec
        variance = (x_BD - x_BD.mean(0)).square().sum(-1).mean().clamp(min=1e-12)
        losses = {
            "mse": (x_BD - x_hat_BD).square().sum(-1).mean() / variance,
            "l1": self.l1 * features_BF.sum(-1).mean() / self.d_model**0.5,
        }
        return Step(x_hat_BD, features_BF, losses)

    def sae(self, scale: float, metadata: dict) -> SAE:
        """The trained SAE, for raw activations."""
        tensors = {"W_enc": self.W_dec.T, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return fold("standard", tensors, scale, metadata)
