"""The error of computing in fewer bits, measured on one text.

Shapes: T tokens, D width of the hook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lensae.model.language_model import LanguageModel


def relative_errors(
    model: LanguageModel, plain: LanguageModel, ids: list[int], hooks: Sequence[str]
) -> dict[str, float]:
    """|x - x_plain| / |x_plain| of each hook's activations over one text (BOS and special tokens left out)."""
    from lensae.model.read import read

    keep = ~np.isin(ids, sorted(model.text.special_ids))
    actual, expected = (read(one, [ids], hooks)[0].activations for one in (model, plain))
    return {hook: _relative_error(actual[hook][keep], expected[hook][keep]) for hook in hooks}


def _relative_error(x_TD: np.ndarray, expected_TD: np.ndarray) -> float:
    difference = np.linalg.norm(x_TD.astype(np.float64) - expected_TD)
    return float(difference / max(float(np.linalg.norm(expected_TD.astype(np.float64))), 1e-300))
