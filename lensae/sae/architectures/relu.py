"""ReLU: positive pre-activations are features, under an L1 penalty (--l1, or --target-l0; Anthropic, April 2024).

The penalty is weighted by the decoder rows' norms, which are free (Circuits Updates, "Update on how we train SAEs"). It
is saved with the norms folded into encoder and features, in the layout's "standard" architecture.

Shapes: B rows, D d_model, F features, R some of the features.
"""

from __future__ import annotations

import torch

from lensae.sae import kernels
from lensae.sae.architectures._base import Step
from lensae.sae.architectures._sparsity import L1Trainer


class Trainer(L1Trainer):
    """Loss: mean squared error over the batch's variance, plus the L1 weight times the mean over the batch of
    sum_i f_i ||W_dec_i|| over sqrt(D)."""

    keeps_unit_rows = False

    @torch.no_grad()
    def initialise(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> None:
        """As all families; then the biases are set so that each feature fires on a small share of the rows."""
        super().initialise(x_BD, target_BD)
        self.start_sparse(x_BD)

    def reset_features(self, feature_R: torch.Tensor, x_BD: torch.Tensor) -> None:
        """As at the start of a training: each fires on a small share of the rows."""
        self.start_sparse(x_BD, feature_R)

    def forward(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> Step:
        """Reconstruct a batch, or predict its targets."""
        target_BD = x_BD if target_BD is None else target_BD
        pre = kernels.encode_above(x_BD, *self.encoder(), density=self.density, dtype=self.product_dtype)
        features = pre.with_value(pre.value.relu())
        x_hat_BD = self.decode(features)
        total = self.mean_per_row(self.as_saved(features), len(x_BD))
        return Step(x_hat_BD, features, {"mse": self.unexplained(target_BD, x_hat_BD)} | self.penalty(total, features))
