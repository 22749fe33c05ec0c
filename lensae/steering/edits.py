"""Edits of the residual stream at a hook, which the hooks of a model call.

Shapes: B batch, T tokens, D d_model, 1 a single entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lensae.core import registry
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

    def delta(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """What the operation adds at each token."""
        operation = registry.load("steering.operations", self.operation)
        return operation.delta(x_BTD, self.sae, self.feature, self.value)

    def apply(self, x_BTD: torch.Tensor, origin_BT: torch.Tensor) -> torch.Tensor:
        """The edited stream."""
        return _changed(x_BTD, positions.select(self.where, origin_BT), self.delta(x_BTD))


@dataclass(frozen=True)
class MatchedDirection:
    """A direction (D,) in place of a feature's own: at each token a change of the same length as that of `edit`."""

    edit: FeatureEdit
    direction_D: torch.Tensor

    @property
    def hook(self) -> str:
        """The hook of the edit that it replaces."""
        return self.edit.hook

    def apply(self, x_BTD: torch.Tensor, origin_BT: torch.Tensor) -> torch.Tensor:
        """The edited stream."""
        length_BT1 = self.edit.delta(x_BTD).norm(dim=-1, keepdim=True)
        unit_D = self.direction_D / self.direction_D.norm()
        return _changed(x_BTD, positions.select(self.edit.where, origin_BT), length_BT1 * unit_D)


@dataclass(frozen=True)
class Replacement:
    """The whole stream replaced by a function of it at every token that is not special or padding."""

    hook: str
    function: Callable[[torch.Tensor], torch.Tensor]

    def apply(self, x_BTD: torch.Tensor, origin_BT: torch.Tensor) -> torch.Tensor:
        """The replaced stream."""
        return _replaced(x_BTD, origin_BT, self.function(x_BTD))


class StreamRecorder:
    """Keeps a copy of the stream at a hook for a later edit in the same pass; changes nothing."""

    def __init__(self, hook: str):
        self.hook = hook
        self.x_BTD: torch.Tensor | None = None

    def apply(self, x_BTD: torch.Tensor, origin_BT: torch.Tensor) -> torch.Tensor:
        """The stream itself."""
        self.x_BTD = x_BTD.clone()  # some families add to the stream in place
        return x_BTD

    def take(self) -> torch.Tensor:
        """Return the copy and drop it."""
        assert self.x_BTD is not None, f"nothing was recorded at {self.hook}"
        x_BTD, self.x_BTD = self.x_BTD, None
        return x_BTD


@dataclass(frozen=True)
class Prediction:
    """The stream replaced by a function of what `recorder` kept earlier in the same pass, at the tokens where
    Replacement replaces it. The recorder must be among the edits of the pass, at an earlier hook."""

    hook: str
    recorder: StreamRecorder
    function: Callable[[torch.Tensor], torch.Tensor]

    def apply(self, x_BTD: torch.Tensor, origin_BT: torch.Tensor) -> torch.Tensor:
        """The replaced stream."""
        return _replaced(x_BTD, origin_BT, self.function(self.recorder.take()))


def predicted(
    source: str, hook: str, function: Callable[[torch.Tensor], torch.Tensor]
) -> list[StreamRecorder | Prediction]:
    """The edits that replace the stream at `hook` by `function` of the stream at `source`."""
    recorder = StreamRecorder(source)
    return [recorder, Prediction(hook, recorder, function)]


def reconstruct(sae: SAE) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> decode(encode(x))."""
    return lambda x: sae.decode(sae.encode(x))


def _replaced(x_BTD: torch.Tensor, origin_BT: torch.Tensor, new_BTD: torch.Tensor) -> torch.Tensor:
    return torch.where(positions.select("all", origin_BT)[..., None], new_BTD, x_BTD)


def _changed(x_BTD: torch.Tensor, where_BT: torch.Tensor, delta_BTD: torch.Tensor) -> torch.Tensor:
    return torch.where(where_BT[..., None], x_BTD + delta_BTD, x_BTD)
