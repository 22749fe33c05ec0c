"""JumpReLU: each feature fires above a learned threshold, and a penalty keeps L0 at a target (--target-l0, or --k;
Rajamanoharan et al. 2024).

Thresholds learn through straight-through estimators ("Jumping ahead: improving reconstruction fidelity with JumpReLU
sparse autoencoders"). L0 has no gradient; it is estimated from the pairs near their thresholds, as in that paper, or as
that of a sum of tanh (Anthropic, Circuits Updates, January 2025).

Shapes: B rows, D d_model, F features, R some of the features; X is N active pairs, or B rows by F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from lensae.core.recipe import TrainRecipe
from lensae.sae import kernels
from lensae.sae.architectures._auxk import aux_loss
from lensae.sae.architectures._base import BaseTrainer, Step


class Jump(torch.autograd.Function):
    """pre where it is above its threshold, else zero; d/d threshold is estimated as -(threshold / width) within half
    a width around the threshold, zero elsewhere (equation 11)."""

    @staticmethod
    def forward(ctx, pre_X, threshold, width: float):
        ctx.width = width
        ctx.save_for_backward(pre_X, threshold)
        return pre_X * (pre_X > threshold)

    @staticmethod
    def backward(ctx, grad_X):
        pre_X, threshold = ctx.saved_tensors
        near_X = (pre_X - threshold).abs() < ctx.width / 2
        slope_X = grad_X * near_X * (threshold / -ctx.width)
        return grad_X * (pre_X > threshold), slope_X.sum_to_size(threshold.shape), None


class Fires(torch.autograd.Function):
    """1 where pre is above its threshold, else zero; d/d threshold is estimated as -1 / width within half a width
    around the threshold, zero elsewhere (equation 12)."""

    @staticmethod
    def forward(ctx, pre_X, threshold, width: float):
        ctx.width = width
        ctx.save_for_backward(pre_X, threshold)
        return (pre_X > threshold).to(pre_X.dtype)

    @staticmethod
    def backward(ctx, grad_X):
        pre_X, threshold = ctx.saved_tensors
        near_X = (pre_X - threshold).abs() < ctx.width / 2
        return None, (grad_X * near_X / -ctx.width).sum_to_size(threshold.shape), None


class Smooth(torch.autograd.Function):
    """1 where a feature is above zero, else zero; the gradient is that of tanh(feature / width), which reaches the
    encoder's weights, the biases and, through the feature's own estimate, the thresholds."""

    @staticmethod
    def forward(ctx, feature_X, width: float):
        ctx.width = width
        ctx.save_for_backward(feature_X)
        return (feature_X > 0).to(feature_X.dtype)

    @staticmethod
    def backward(ctx, grad_X):
        [feature_X] = ctx.saved_tensors
        return grad_X * (1 - (feature_X / ctx.width).tanh().square()) / ctx.width, None


class Trainer(BaseTrainer):
    """Loss: mean squared error over the batch's variance, `recipe.l0_weight` times (L0 / target - 1)^2, and the
    auxiliary loss of TopK. The target is `recipe.target_l0`, or `recipe.k`; `recipe.l0_penalty` says how the gradient
    of L0 is estimated. On rows that are not trained on the number differs somewhat: the thresholds are moved together
    to meet it there."""

    saved_as = "jumprelu"
    hints = ("density",)

    def check(self) -> None:
        """Raise UserError when there are fewer features than are to be active."""
        self.check_count(self.target, f"an L0 of {self.target:g}")

    def add_parameters(self) -> None:
        """The logarithmic thresholds."""
        self.log_threshold = nn.Parameter(torch.zeros_like(self.b_enc))
        self.density = 0.0

    @property
    def target(self) -> float:
        """The L0 aimed at."""
        return self.recipe.target_l0 or self.k

    @classmethod
    def sparsity(cls, recipe: TrainRecipe) -> str:
        """What decides how many features fire, for names and headings: "l0-32"."""
        return f"l0-{recipe.target_l0 or recipe.k:g}"

    @torch.no_grad()
    def initialise(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> None:
        """As all families; then the thresholds are set so that each feature fires on a small share of the rows."""
        super().initialise(x_BD, target_BD)
        self.log_threshold.data = self.starting_thresholds(x_BD).clamp(min=1e-2).log()

    def reset_features(self, feature_R: torch.Tensor, x_BD: torch.Tensor) -> None:
        """As at the start of a training: each fires on a small share of the rows."""
        super().reset_features(feature_R, x_BD)
        self.log_threshold.data[feature_R] = self.starting_thresholds(x_BD, feature_R).clamp(min=1e-2).log()

    def forward(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> Step:
        """Reconstruct a batch, or predict its targets."""
        target_BD = x_BD if target_BD is None else target_BD
        threshold_F, width = self.log_threshold.exp(), self.recipe.bandwidth
        floor_F = threshold_F.detach() - (width / 2 if self.training else 0)
        pre = kernels.encode_above(x_BD, *self.encoder(), floor_F, self.density, self.product_dtype)
        threshold = pre.per_pair(threshold_F)
        features = pre.with_value(Jump.apply(pre.value, threshold, width))
        x_hat_BD = self.decode(features)
        tanh = self.training and self.recipe.l0_penalty == "tanh"
        fires_X = Smooth.apply(features.value, width) if tanh else Fires.apply(pre.value, threshold, width)
        l0 = self.mean_per_row(fires_X, len(x_BD))
        self.density = float(l0.detach()) / self.d_sae
        weight = self.recipe.l0_weight if self.training else 1.0
        losses = {"mse": self.unexplained(target_BD, x_hat_BD), "l0": weight * (l0 / self.target - 1).square()}
        if self.training:
            self.count_firing(features)
            losses["aux"] = self.aux * aux_loss(self, x_BD, target_BD, x_hat_BD.detach())
        return Step(x_hat_BD, features, losses)

    @torch.no_grad()
    def calibrate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Move all thresholds by the same small amount, so that the target is met on held-out rows."""
        threshold_F = self.log_threshold.exp()
        moved_F = threshold_F + self.common_threshold(batches, self.b_enc - threshold_F, self.target)
        self.log_threshold.data = moved_F.clamp(min=1e-6).log()

    def vectors(self) -> dict[str, torch.Tensor]:
        """The encoder's biases and the thresholds."""
        return super().vectors() | {"threshold": self.log_threshold.exp()}
