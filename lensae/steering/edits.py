"""Edits of the stream at a hook, as the model's hooks call them.

Shapes: B batch, T tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lensae import registry
from lensae.sae.base import SAE
from lensae.steering import positions


@dataclass(frozen=True)
class FeatureEdit:
    """One operation on one feature at the positions that `where` names."""

    hook: str
    sae: SAE
    feature: int
    value: float
    operation: str = "clamp"
    where: str = "all"

    def apply(self, x_BTD: torch.Tensor, origin_BT: torch.Tensor) -> torch.Tensor:
        """The edited stream."""
        delta = registry.load("steering.operations", self.operation).delta
        return _changed(
            x_BTD, positions.select(self.where, origin_BT), delta(x_BTD, self.sae, self.feature, self.value)
        )


@dataclass(frozen=True)
class DirectionEdit:
    """A fixed vector (D,) added at the positions that `where` names."""

    hook: str
    vector_D: torch.Tensor
    where: str = "all"

    def apply(self, x_BTD: torch.Tensor, origin_BT: torch.Tensor) -> torch.Tensor:
        """The edited stream."""
        return _changed(x_BTD, positions.select(self.where, origin_BT), self.vector_D.expand_as(x_BTD))


@dataclass(frozen=True)
class Replacement:
    """The whole stream replaced by a function of it at every token that is not special or padding."""

    hook: str
    function: Callable[[torch.Tensor], torch.Tensor]

    def apply(self, x_BTD: torch.Tensor, origin_BT: torch.Tensor) -> torch.Tensor:
        """The replaced stream."""
        return torch.where(positions.select("all", origin_BT)[..., None], self.function(x_BTD), x_BTD)


def reconstruct(sae: SAE) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> decode(encode(x))."""
    return lambda x: sae.decode(sae.encode(x))


def _changed(x_BTD: torch.Tensor, where_BT: torch.Tensor, delta_BTD: torch.Tensor) -> torch.Tensor:
    return torch.where(where_BT[..., None], x_BTD + delta_BTD, x_BTD)
