"""TopK: exactly the k largest pre-activations of a row are features (--k; Gao et al. 2024).

The paper is "Scaling and evaluating sparse autoencoders"; its auxiliary loss (AuxK) keeps silent features in training.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

from typing import Any

import torch

from lensae.sae import kernels
from lensae.sae.architectures._auxk import aux_loss
from lensae.sae.architectures._base import BaseTrainer, Step
from lensae.sae.base import SAE


class Trainer(BaseTrainer):
    """Loss: mean squared error over the batch's variance, plus `aux` times the error of the dead features'
    reconstruction of what is left."""

    saved_as = "topk"

    def check(self) -> None:
        """Raise UserError when there are fewer features than are to be active."""
        self.check_count(self.k, f"k = {self.k}")

    def forward(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> Step:
        """Reconstruct a batch, or predict its targets."""
        target_BD = x_BD if target_BD is None else target_BD
        features = kernels.encode_topk(x_BD, *self.encoder(), self.k, self.group, self.product_dtype)
        x_hat_BD = self.decode(features)
        losses = {"mse": self.unexplained(target_BD, x_hat_BD)}
        if self.training:
            self.count_firing(features)
            losses["aux"] = self.aux * aux_loss(self, x_BD, target_BD, x_hat_BD.detach())
        return Step(x_hat_BD, features, losses)

    def sae(self, scale: float, metadata: dict, target_scale: float | None = None, **more: Any) -> SAE:
        """The trained SAE, for raw activations."""
        more |= {"k": self.k, "rescale_acts_by_decoder_norm": False}
        return super().sae(scale, metadata, target_scale, **more)
