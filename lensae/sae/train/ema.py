"""The running mean of a trainer's weights, which ends a training as lower learning rates would (Polyak & Juditsky 1992,
"Acceleration of stochastic approximation by averaging")."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lensae.sae.architectures._base import BaseTrainer


class ExponentialMovingAverage:
    """The exponential mean of every parameter, with `decay` as the weight of what was there before.

    At first it looks back no farther than a tenth of the steps so far, so that the start is soon forgotten.
    """

    def __init__(self, trainer: BaseTrainer, decay: float):
        self.decay, self.steps = decay, 0
        self.mean = {name: p.detach().clone() for name, p in trainer.named_parameters()}

    @torch.no_grad()
    def update(self, trainer: BaseTrainer) -> None:
        """Take the weights after one more step in."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, p in trainer.named_parameters():
            self.mean[name].lerp_(p.detach(), weight)

    @contextmanager
    def in_place(self, trainer: BaseTrainer) -> Iterator[None]:
        """The trainer has the mean weights meanwhile, its decoder's rows brought back to unit norm."""
        own = {name: p.data for name, p in trainer.named_parameters()}
        for name, p in trainer.named_parameters():
            p.data = self.mean[name].clone()
        trainer.after_step()
        try:
            yield
        finally:
            for name, p in trainer.named_parameters():
                p.data = own[name]
