"""What a steering run is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lensae.core import registry
from lensae.core.errors import UserError
from lensae.core.recipe import Sampling
from lensae.steering import positions

DEFAULT_PROMPTS = ("I woke up this morning and", "The most important thing to know is", "My friend told me that")


@dataclass(frozen=True)
class SteerOptions:
    """What to steer; values are multiples of the feature's maximum over the set."""

    feature: int
    scales: tuple[float, ...] = (1.0,)
    operation: str = "clamp"
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    positions: str = "all"
    seed: int = 0
    max_new_tokens: int = 48
    samples: int = 4
    temperature: float = 0.7
    set_name: str | None = None
    sae_name: str | None = None

    def __post_init__(self) -> None:
        for scale in self.scales:
            if not math.isfinite(scale):
                raise UserError(f"--scale cannot be {scale}", "a number, in multiples of the feature's maximum")
        registry.check("steering.operations", self.operation)
        positions.check(self.positions)
        if not self.prompts or not all(p.strip() for p in self.prompts):
            raise UserError("an empty prompt cannot be continued", 'give --prompt "some words"')
        for name in ("samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} cannot be {getattr(self, name)}", "1 or more")
        _checked = self.sampling

    @property
    def takes_value(self) -> bool:
        """Whether the operation depends on the value that the feature is given, and so on the scale."""
        return getattr(registry.load("steering.operations", self.operation), "takes_value", True)

    @property
    def sampling(self) -> Sampling:
        """How continuations are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, 50, self.seed)
