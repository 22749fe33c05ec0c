"""What computing in fewer bits costs: the same text through the model both ways."""

from __future__ import annotations

import numpy as np


def relative_errors(model, plain, ids: list[int], hooks) -> dict[str, float]:
    """|x - x_plain| / |x_plain| of each hook's activations over one text (BOS and special tokens left out)."""
    from lensae.model.read import read

    keep = ~np.isin(ids, sorted(model.text.special_ids))
    found, expected = (read(one, [ids], hooks)[0].activations for one in (model, plain))
    return {hook: _relative(found[hook][keep], expected[hook][keep]) for hook in hooks}


def _relative(x_TW: np.ndarray, expected_TW: np.ndarray) -> float:
    difference = np.linalg.norm(x_TW.astype(np.float64) - expected_TW)
    return float(difference / max(np.linalg.norm(expected_TW.astype(np.float64)), 1e-300))
