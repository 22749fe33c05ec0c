"""The tokens on which an edit acts; never padding or special tokens (origin below 0).

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lensae.core.errors import unknown
from lensae.core.records import GENERATED, PROMPT

if TYPE_CHECKING:
    import torch

POSITIONS = {"all": PROMPT, "generated": GENERATED}


def check(name: str) -> None:
    """Raise UserError for a name that is not in POSITIONS."""
    if name not in POSITIONS:
        raise unknown("choice of positions", name, POSITIONS)


def select(name: str, origin_BT: torch.Tensor) -> torch.Tensor:
    """The mask (B, T) of the tokens that `name` selects."""
    return origin_BT >= POSITIONS[name]
