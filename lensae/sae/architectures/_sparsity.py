"""Families whose sparsity follows from an L1 penalty.

Shapes: B rows, D d_model, F features, R some of the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from lensae.core.recipe import TrainRecipe
from lensae.sae import kernels
from lensae.sae.architectures._base import BaseTrainer


class L1Trainer(BaseTrainer):
    """A family whose number of active features follows from the weight of an L1 penalty.

    The weight rises from zero over the first part of a training. With `recipe.target_l0` it then goes up while more
    features are active than that, and down while fewer are.
    """

    penalised_by = "l1"
    log_l1: torch.Tensor
    warmup, limit = 0.05, 0.15
    hints = ("density",)
    shared = (*BaseTrainer.shared, "log_l1")

    def check(self) -> None:
        """Raise UserError when there are fewer features than are to be active."""
        target = self.recipe.target_l0 or 0
        self.check_count(target, f"an L0 of {target:g}")

    def add_parameters(self) -> None:
        """The penalty's weight."""
        self.register_buffer("log_l1", torch.tensor(math.log(self.recipe.l1)))
        self.density = 1.0  # of the batch before: how the next one is computed, not what comes out

    def parameter_groups(self, encoder_share: float) -> list[dict]:
        """One group: with an encoder that learns more slowly relu ends worse."""
        return [{"params": list(self.parameters()), "share": 1.0}]

    @property
    def gain(self) -> float:
        """How fast the weight follows: in few steps it has to go the same way faster."""
        return max(0.1, min(0.3, 20 / self.steps))

    @classmethod
    def sparsity(cls, recipe: TrainRecipe) -> str:
        """What decides how many features fire, for names and headings: "l1-0.1" or "l0-32"."""
        return f"l0-{recipe.target_l0:g}" if recipe.target_l0 else f"l1-{recipe.l1:g}"

    def start_sparse(self, x_BD: torch.Tensor, feature_R: torch.Tensor | None = None) -> None:
        """Set the biases (or those of some features) so that each fires on a small share of the rows."""
        if feature_R is None:
            self.b_enc.data, self.density = -self.starting_thresholds(x_BD), self.start_share
        else:
            self.b_enc.data[feature_R] = -self.starting_thresholds(x_BD, feature_R)

    def penalty(self, total: torch.Tensor, features: kernels.Features) -> dict[str, torch.Tensor]:
        """The sparsity term of the loss, from the mean over rows of the features' sum; the batch is counted in.

        Away from training with a target it is (L0 / target - 1)^2, which the changing weight does not move, so that
        epochs compare.
        """
        rows = self.group.count_rows(features.shape[0])
        count_F = self.group.sum_over_rows(features.count_F())
        l0 = float(self.group.sum_over_features(count_F.sum())) / rows
        self.density = l0 / self.d_sae
        target = self.recipe.target_l0
        if target and not self.training:
            return {"l0": total.new_tensor((l0 / target - 1) ** 2)}
        weight = math.exp(float(self.log_l1))
        if self.training:
            self.dead.update(count_F, rows)
            weight *= min(1.0, self.progress / self.warmup)
            if target and self.progress >= self.warmup:
                self.log_l1 += self.gain * max(-self.limit, min(self.limit, math.log(max(l0, 1e-3) / target)))
        return {"l1": weight * total / self.d_model**0.5}

    @torch.no_grad()
    def calibrate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """With a target L0, move all biases by the same small amount, so that it is met on held-out rows."""
        if self.recipe.target_l0:
            self.b_enc.sub_(self.common_threshold(batches, self.b_enc, self.recipe.target_l0))
