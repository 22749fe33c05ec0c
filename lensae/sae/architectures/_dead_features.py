"""Which features have been silent for long.

Shapes: F features.
"""

from __future__ import annotations

import torch
from torch import nn


class DeadFeatures(nn.Module):
    """Tokens since each feature last fired; a feature silent for `window` tokens counts as dead."""

    silent_F: torch.Tensor

    def __init__(self, d_sae: int, window: int):
        super().__init__()
        self.register_buffer("silent_F", torch.zeros(d_sae, dtype=torch.long))
        self.window = window

    def update(self, count_F: torch.Tensor, rows: int) -> None:
        """Count a batch in: on how many of its rows each feature fired."""
        self.silent_F = torch.where(count_F > 0, 0, self.silent_F + rows)

    @property
    def mask_F(self) -> torch.Tensor:
        """Which features are dead."""
        return self.silent_F >= self.window
