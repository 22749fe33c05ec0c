"""What the training of every family shares.

Shapes: B rows, D d_model, F features, R some of the features, K candidates of a row, N pre-activations in falling
order. Input and target rows have the same width, except in a transcoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lensae.core.errors import UserError
from lensae.core.recipe import TrainRecipe
from lensae.sae import functional, kernels
from lensae.sae.architectures._dead_features import DeadFeatures
from lensae.sae.architectures._losses import unexplained
from lensae.sae.architectures._sharding import BLOCK, ShardedModule, random_rows
from lensae.sae.base import SAE
from lensae.sae.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lensae.sae.formats import saelens as checkpoint
from lensae.sae.train.schedule import AUX

# Held-out rows, at most, on which a threshold is calibrated, and how many of them first show roughly where it is.
CALIBRATION_ROWS, LEVEL_ROWS = 2**17, 256
# Names that SAELens 6 has for transcoders; the others keep their own, which it loads while input and output are of one
# width.
TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
# Families that are not sparse by construction start with features that fire on this share of the rows, or with this L0.
START_SHARE, START_L0, START_ROWS = 0.05, 256, 4096


@dataclass(frozen=True)
class Step:
    """One forward pass of a training batch: `losses` are named terms whose sum is minimised."""

    x_hat_BD: torch.Tensor
    features: kernels.Features
    losses: dict[str, torch.Tensor]


class BaseTrainer(ShardedModule):
    """Weights, start, unit-norm decoder and saving, as all families have them; a family adds `forward`, and where it
    needs them `check` and `add_parameters`.

    Rows reach it normalised. With `d_out` it is a transcoder (Dunefsky et al. 2024): it predicts `target_BD` rows of
    that width, and what is subtracted from its input is the input's own centre, which stays fixed.
    The encoder is kept by feature, W_enc_FD, because its gradient has a row for every feature that was active.
    A feature takes 2 D numbers of weights, as many of gradients, twice as many of Adam's moments and as many for the
    best weights so far, 40 D bytes in all (a running mean of the weights adds 8 D); pre-activations exist for a block
    of rows at a time.
    """

    centre: torch.Tensor | None
    saved_as = "standard"
    penalised_by: str | None = None
    unscaled: tuple[str, ...] = ()  # saved vectors that stay as they are when the scale of the rows is folded in
    keeps_unit_rows = True
    hints: tuple[str, ...] = ()  # numbers beside the tensors that one batch leaves to the next

    def __init__(
        self,
        d_model: int,
        d_sae: int,
        recipe: TrainRecipe,
        dead_window: int,
        d_out: int | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        super().__init__(d_sae, group)
        self.d_model, self.d_sae, self.d_out, self.recipe = d_model, d_sae, d_out, recipe
        self.k = recipe.k or 1
        self.check()
        # The share of the training that is done, its length and the weight of AuxK: the loop sets them.
        self.progress, self.steps, self.aux = 1.0, 1000, AUX if recipe.aux is None else recipe.aux
        # The precision of the product that selects features, where it is not that of the rows.
        self.training_dtype: torch.dtype | None = (
            None if recipe.encoder_dtype == "float32" else getattr(torch, recipe.encoder_dtype)
        )
        self.product_dtype: torch.dtype | None = self.training_dtype
        if group.splits_features and group.size > d_sae:
            raise UserError(f"{group.size} processes cannot divide {d_sae} features", "start fewer, or raise --width")
        self.W_dec = nn.Parameter(self._random_directions(d_out or d_model))
        encoder_FD = self.W_dec.data.clone() if d_out is None else self._random_directions(d_model)
        self.W_enc_FD = nn.Parameter(encoder_FD)
        self.b_enc = nn.Parameter(torch.zeros(len(encoder_FD)))
        self.b_dec = nn.Parameter(torch.zeros(d_out or d_model))
        self.register_buffer("centre", None if d_out is None else torch.zeros(d_model))
        self.dead = DeadFeatures(len(encoder_FD), dead_window)
        self.add_parameters()

    def _random_directions(self, width: int) -> torch.Tensor:
        return functional.unit_rows(random_rows(self.d_sae, width, self.own_features))

    def check(self) -> None:
        """Raise UserError for a recipe that the family cannot follow."""

    def check_count(self, active: float, called: str) -> None:
        """Raise UserError when there are fewer features than these."""
        if active > self.d_sae:
            raise UserError(f"{called} is more than the {self.d_sae} features there are", "raise --width, or lower it")

    def add_parameters(self) -> None:
        """Add the parameters and buffers that only this family has."""

    def train(self, mode: bool = True) -> BaseTrainer:
        """Set training or evaluation; the latter selects features in the precision of the rows."""
        self.product_dtype = self.training_dtype if mode else None
        return super().train(mode)

    @classmethod
    def sparsity(cls, recipe: TrainRecipe) -> str:
        """What decides how many features fire, for names and headings: "k32"."""
        return f"k{recipe.k}"

    def parameter_groups(self, encoder_share: float) -> list[dict]:
        """The optimizer's groups of parameters, each with its share of the learning rate: the encoder's weights have
        one of their own."""
        rest = [parameter for parameter in self.parameters() if parameter is not self.W_enc_FD]
        return [{"params": rest, "share": 1.0}, {"params": [self.W_enc_FD], "share": encoder_share}]

    @property
    def shift_D(self) -> torch.Tensor:
        """What is subtracted from the input rows."""
        return self.b_dec if self.centre is None else self.centre

    @torch.no_grad()
    def initialise(self, x_BD: torch.Tensor, target_BD: torch.Tensor | None = None) -> None:
        """b_dec at the targets' geometric median, W_enc = W_dec^T (Gao et al. 2024, appendix A.1).

        A transcoder's decoder starts as the mean target, off its median, of the rows each feature would fire on.
        """
        if self.centre is None:
            self.b_dec.data = functional.geometric_median(x_BD)
            return
        assert target_BD is not None, "a transcoder starts from rows and targets"
        self.centre = functional.geometric_median(x_BD)
        self.b_dec.data = functional.geometric_median(target_BD)
        sample, target = x_BD[:2048] - self.centre, target_BD[:2048] - self.b_dec
        pre_BF = sample @ self.W_enc_FD.T
        fires_BF = functional.topk(pre_BF, self.k)
        if self.group.splits_features:
            best_BK = pre_BF.topk(min(self.k, len(self.b_enc)), dim=1).values
            fires_BF *= pre_BF >= kernels.kth_largest(best_BK, self.k, self.group)
        mean_FD = fires_BF.T @ target
        never = mean_FD.norm(dim=1, keepdim=True) == 0
        self.W_dec.data = torch.where(never, self.W_dec, functional.unit_rows(mean_FD))

    def reset_features(self, feature_R: torch.Tensor, x_BD: torch.Tensor) -> None:
        """Set what these features have beside their rows of encoder and decoder to where a training begins."""
        self.b_enc.data[feature_R] = 0.0

    @property
    def start_share(self) -> float:
        """The share of the rows that each feature of such a family fires on when training starts."""
        return min(START_SHARE, START_L0 / self.d_sae)

    def starting_thresholds(self, x_BD: torch.Tensor, feature_R: torch.Tensor | None = None) -> torch.Tensor:
        """What the pre-activation of each feature (or of some) exceeds on a small share of the rows (F,), so that
        training starts sparse (Anthropic, Circuits Updates, January 2025, starts at such a share too)."""
        sample_BD = x_BD[:START_ROWS] - self.shift_D
        weight_FD = self.W_enc_FD.data if feature_R is None else self.W_enc_FD.data[feature_R]
        above = max(1, round(len(sample_BD) * self.start_share))
        blocks = [(rows_FD @ sample_BD.T).topk(above, dim=1).values[:, -1] for rows_FD in weight_FD.split(BLOCK)]
        return torch.cat(blocks)

    @torch.no_grad()
    def common_threshold(
        self, batches: Callable[[], Iterable[torch.Tensor]], b_F: torch.Tensor, active: float
    ) -> float:
        """The threshold that on average `active` pre-activations of a row exceed, with the biases b_F: over all rows of
        the batches together, halfway between the last of these and the next."""
        shift_D, W_FD, _ = self.encoder()
        more = 2.0
        while True:
            floor, values, rows = None, [], 0
            for x_BD in batches():
                if floor is None:
                    few_BF = torch.addmm(b_F, x_BD[:LEVEL_ROWS] - shift_D, W_FD.T)
                    most = round(min(more * active + 1, self.d_sae) * len(few_BF))
                    best_N = kernels.largest(few_BF.view(-1), most + 1, self.group)
                    floor = float(best_N[most]) if len(best_N) > most else -math.inf
                values.append(kernels.encode_above(x_BD, shift_D, W_FD, b_F, floor).value)
                rows += len(x_BD)
                if rows >= CALIBRATION_ROWS:
                    break
            value_N, wanted = torch.cat(values), round(active * rows)
            if self.group.count_features(len(value_N)) > wanted or floor == -math.inf:
                return float(kernels.largest(value_N, wanted + 1, self.group)[-2:].mean())
            more *= 2

    def calibrate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Choose on held-out normalised rows what can only be chosen after training (nothing, in most families)."""

    @torch.no_grad()
    def before_step(self) -> None:
        """Remove the part of the decoder's gradient that would only change its rows' norms."""
        if self.keeps_unit_rows:
            assert self.W_dec.grad is not None, "before_step follows the backward pass"
            for grad, rows in zip(self.W_dec.grad.split(BLOCK), self.W_dec.data.split(BLOCK), strict=True):
                grad.addcmul_(rows, (grad * rows).sum(-1, keepdim=True), value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the decoder's rows back to unit norm."""
        if self.keeps_unit_rows:
            for rows in self.W_dec.data.split(BLOCK):
                rows.div_(rows.norm(dim=-1, keepdim=True).clamp(min=1e-12))

    def encoder(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """shift, W (F, D) and b (F,) of the pre-activations."""
        return self.shift_D, self.W_enc_FD, self.b_enc

    def unexplained(self, target_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> torch.Tensor:
        """The error as a term of the loss (lensae.sae.architectures._losses), massive activations held down."""
        return unexplained(target_BD, x_hat_BD, self.group, self.recipe.norm_limit)

    def as_saved(self, features: kernels.Features) -> torch.Tensor:
        """The features' values as those of the saved SAE are, whose decoder has rows of unit norm."""
        return features.value if self.keeps_unit_rows else features.value * features.per_pair(self.W_dec.norm(dim=1))

    def vectors(self) -> dict[str, torch.Tensor]:
        """The saved vectors that have one number per feature: biases and thresholds."""
        return {"b_enc": self.b_enc}

    def fold_centre(self, vectors: dict[str, torch.Tensor], shift_F: torch.Tensor) -> dict[str, torch.Tensor]:
        """The saved vectors of a transcoder that subtracts no centre from its rows: `shift_F` is what the centre's
        product with the encoder takes away from every pre-activation."""
        return vectors | {"b_enc": vectors["b_enc"] - shift_F}

    @torch.no_grad()
    def sae(self, scale: float, metadata: dict, target_scale: float | None = None, **more: Any) -> SAE:
        """The trained SAE for raw activations, when rows were multiplied by `scale` (targets by `target_scale`).

        Features come out in the units of the raw activations (a transcoder's: of the raw targets), so that the
        decoder's rows stay what they are. Where features are divided it has those of this process.
        """
        target_scale = target_scale or scale
        vectors = {name: p if name in self.unscaled else p / target_scale for name, p in self.vectors().items()}
        W_enc = self.W_enc_FD.T * (scale / target_scale)
        W_dec = self.W_dec
        if not self.keeps_unit_rows:
            norm_F = self.W_dec.norm(dim=1).clamp(min=1e-12)
            W_enc, W_dec, vectors["b_enc"] = W_enc * norm_F, W_dec / norm_F[:, None], vectors["b_enc"] * norm_F
        if self.centre is not None:
            vectors = self.fold_centre(vectors, (self.centre / scale) @ W_enc)
            more = {"apply_b_dec_to_input": False, "d_out": self.d_out} | more
        tensors = vectors | {"W_enc": W_enc, "W_dec": W_dec, "b_dec": self.b_dec / target_scale}
        saved_as = self.saved_as if self.centre is None else TRANSCODERS.get(self.saved_as, self.saved_as)
        cfg = checkpoint.config(saved_as, self.d_model, self.d_sae, metadata, **more)
        return SAE(cfg, {name: tensor.detach().clone() for name, tensor in tensors.items()})
