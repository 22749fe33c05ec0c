"""TopK: exactly the k largest pre-activations are features (Gao et al. 2024, "Scaling and evaluating sparse
autoencoders"), with their auxiliary loss (AuxK) that keeps silent features in training.

Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

import torch
from torch import nn

from lensae.errors import UserError
from lensae.recipe import TrainRecipe
from lensae.sae import functional
from lensae.sae.base import SAE
from lensae.sae.training import DeadFeatures, Step, UnitDecoder, fold


class Trainer(UnitDecoder):
    """Loss: mean squared error over the batch's variance, plus `recipe.aux` times the error of the dead features'
    reconstruction of what is left."""

    def __init__(self, d_model: int, d_sae: int, recipe: TrainRecipe, dead_window: int):
        super().__init__()
        if recipe.k > d_sae:
            raise UserError(f"k = {recipe.k} is more than the {d_sae} features there are", "lower --k or raise --width")
        self.k, self.aux, self.k_aux = recipe.k, recipe.aux, max(1, d_model // 2)
        self.W_dec = nn.Parameter(functional.unit_rows(torch.randn(d_sae, d_model)))
        self.W_enc = nn.Parameter(self.W_dec.data.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_model))
        self.dead = DeadFeatures(d_sae, dead_window)

    def initialise(self, x_BD: torch.Tensor) -> None:
        """b_dec at the rows' geometric median; the encoder starts as the decoder's transpose."""
        self.b_dec.data = functional.geometric_median(x_BD)

    def forward(self, x_BD: torch.Tensor) -> Step:
        """Reconstruct a batch."""
        pre_BF = (x_BD - self.b_dec) @ self.W_enc + self.b_enc
        features_BF = functional.topk(pre_BF, self.k)
        x_hat_BD = features_BF @ self.W_dec + self.b_dec
        variance = (x_BD - x_BD.mean(0)).square().sum(-1).mean().clamp(min=1e-12)
        losses = {"mse": (x_BD - x_hat_BD).square().sum(-1).mean() / variance}
        if self.training:
            self.dead.saw(features_BF.detach())
            losses["aux"] = self.aux * self._aux_loss(x_BD - x_hat_BD.detach(), pre_BF)
        return Step(x_hat_BD, features_BF, losses)

    def _aux_loss(self, error_BD: torch.Tensor, pre_BF: torch.Tensor) -> torch.Tensor:
        """How badly the best `k_aux` dead features explain the error of the live ones, relative to that error."""
        dead_index = torch.nonzero(self.dead.mask_F)[:, 0].to(pre_BF.device)
        if not len(dead_index):
            return pre_BF.new_zeros(())
        features = functional.topk(pre_BF[:, dead_index], min(self.k_aux, len(dead_index)))
        left = (error_BD - features @ self.W_dec[dead_index]).square().sum(-1).mean()
        return torch.nan_to_num(left / error_BD.square().sum(-1).mean())

    def sae(self, scale: float, metadata: dict) -> SAE:
        """The trained SAE, for raw activations."""
        tensors = {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return fold("topk", tensors, scale, metadata, k=self.k, rescale_acts_by_decoder_norm=False)
