"""BatchTopK: k features fire on a row on average, more on some rows than on others (--k; Bussmann et al. 2024).

In training the B k largest pre-activations of a batch are its features ("BatchTopK sparse autoencoders"), with the
auxiliary loss of TopK. A row alone has no batch: it is saved as JumpReLU with one threshold, chosen on held-out rows so
that k features fire on the average row.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from lensae.core.errors import LensaeError
from lensae.sae import kernels
from lensae.sae.architectures._auxk import aux_loss
from lensae.sae.architectures._base import BaseTrainer, Step
from lensae.sae.base import SAE


class Trainer(BaseTrainer):
    """Loss: mean squared error over the batch's variance, plus `aux` times the error of the dead features'
    reconstruction of what is left."""

    threshold: torch.Tensor
    saved_as = "jumprelu"
    hints = ("guess",)
    shared = (*BaseTrainer.shared, "threshold")

    def check(self) -> None:
        """Raise UserError when there are fewer features than are to be active."""
        self.check_count(self.k, f"k = {self.k}")

    def add_parameters(self) -> None:
        """The threshold, 0 until it is calibrated, and what helps to find the next batch's features."""
        self.register_buffer("threshold", torch.tensor(0.0))
        self.guess: float | None = None  # near the next batch's least feature: for speed alone

    def forward(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> Step:
        """Reconstruct a batch, or predict its targets."""
        target_BD = x_BD if target_BD is None else target_BD
        features = self.features(x_BD)
        x_hat_BD, mse = self.reconstruct(features, target_BD)
        losses = {"mse": mse}
        if self.training:
            self.count_firing(features)
            losses["aux"] = self.aux * aux_loss(self, x_BD, target_BD, x_hat_BD.detach())
        return Step(x_hat_BD, features, losses)

    def reconstruct(self, features: kernels.Features, target_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The reconstruction and its loss."""
        x_hat_BD = self.decode(features)
        return x_hat_BD, self.unexplained(target_BD, x_hat_BD)

    def features(self, x_BD: torch.Tensor) -> kernels.Features:
        """The batch's largest in training and before calibration, afterwards those above the threshold."""
        if self.training or not self.threshold:
            args = (*self.encoder(), self.k, self.guess, self.group, self.product_dtype)
            features, least = kernels.encode_batch_topk(x_BD, *args)
            self.guess = 0.9 * least
            return features
        return kernels.encode_above(x_BD, *self.encoder(), float(self.threshold), dtype=self.product_dtype)

    def calibrate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Set the threshold so that k features fire on the average held-out row (fewer, if fewer are positive)."""
        level = self.common_threshold(batches, self.b_enc, self.k)
        self.threshold = torch.full_like(self.threshold, max(level, 1e-6))

    def vectors(self) -> dict[str, torch.Tensor]:
        """The encoder's biases and the one threshold."""
        return super().vectors() | {"threshold": self.threshold.expand_as(self.b_enc)}

    def sae(self, scale: float, metadata: dict, target_scale: float | None = None, **more: Any) -> SAE:
        """The trained SAE, for raw activations; raises LensaeError when it was not calibrated."""
        if not self.threshold:
            raise LensaeError(f"{self.recipe.arch} has no threshold yet", "calibrate it on held-out rows")
        return super().sae(scale, metadata, target_scale, **more)
