"""How strong activations are: counts in bins whose edges are the same for every SAE.

Shapes: N activations.
"""

from __future__ import annotations

import numpy as np

# Steps of a factor 2^(1/8) from 2^-8 to 2^16; the end bins take what lies outside.
EDGES = 2.0 ** np.linspace(-8, 16, 193)
BINS = len(EDGES) - 1


def counted(value_N: np.ndarray) -> np.ndarray:
    """How many of the values above zero fall into each bin (192,) int64."""
    return np.histogram(np.clip(value_N, EDGES[0], EDGES[-1]), EDGES)[0]
