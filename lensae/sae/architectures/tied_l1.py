"""Tied L1: ReLU with one matrix for encoder and decoder, under an L1 penalty (--l1, or --target-l0; Cunningham et al.
2023).

The paper is "Sparse autoencoders find highly interpretable features in language models". The rows are centred on their
geometric median, which stays fixed; it is saved in the layout's "standard" architecture.

Shapes: B rows, D d_model, F features, R some of the features.
"""

from __future__ import annotations

import torch

from lensae.core.errors import UserError
from lensae.sae import functional, kernels
from lensae.sae.architectures._base import Step
from lensae.sae.architectures._sparsity import L1Trainer


class Trainer(L1Trainer):
    """Loss: mean squared error over the batch's variance, plus `recipe.l1` times the mean over the batch of the
    features' sum over sqrt(D) (the rows have a mean norm of sqrt(D), so the weight does not depend on the model)."""

    def check(self) -> None:
        """Raise UserError also when inputs and targets differ in width."""
        super().check()
        if self.d_out not in (None, self.d_model):
            raise UserError(
                f"tied-l1 cannot predict rows of width {self.d_out} from rows of width {self.d_model}",
                "its one matrix is encoder and decoder; choose another --arch",
            )

    def add_parameters(self) -> None:
        """One matrix for both, and a centre that does not learn."""
        super().add_parameters()
        self.W_enc_FD = self.W_dec  # type: ignore[assignment]  # both are the one parameter
        del self.b_dec
        self.register_buffer("b_dec", torch.zeros(self.d_model))

    @torch.no_grad()
    def initialise(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> None:
        """Centre at the geometric median; rows start as directions of the data, which no feature starts out dead to.

        With a target L0 the biases start where each feature fires on a small share of the rows."""
        target_BD = x_BD if target_BD is None else target_BD
        self.b_dec.data = functional.geometric_median(target_BD)
        if self.centre is not None:
            self.centre = functional.geometric_median(x_BD)
        index = torch.randperm(len(x_BD))[: self.d_sae][self.own_features]
        rows = functional.unit_rows(x_BD[index] - self.shift_D)
        self.W_dec.data[: len(rows)] = functional.unit_rows(0.5 * rows + 0.5 * self.W_dec.data[: len(rows)])
        if self.recipe.target_l0:
            self.start_sparse(x_BD)

    def reset_features(self, feature_R: torch.Tensor, x_BD: torch.Tensor) -> None:
        """As at the start of a training."""
        super().reset_features(feature_R, x_BD)
        if self.recipe.target_l0:
            self.start_sparse(x_BD, feature_R)

    def forward(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> Step:
        """Reconstruct a batch, or predict its targets."""
        target_BD = x_BD if target_BD is None else target_BD
        pre = kernels.encode_above(x_BD, *self.encoder(), density=self.density, dtype=self.product_dtype)
        features = pre.with_value(pre.value.relu())
        x_hat_BD = self.decode(features)
        total = self.mean_per_row(features.value, len(x_BD))
        losses = {"mse": self.unexplained(target_BD, x_hat_BD)} | self.penalty(total, features)
        return Step(x_hat_BD, features, losses)
