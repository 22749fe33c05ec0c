"""Building a segment from a shard's activations.

Shapes: B rows, D d_model, F features, P postings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lensae.index.file import Postings, invert

if TYPE_CHECKING:
    from lensae.sae.base import SAE


def encode_shard(sae: SAE, chunks: Iterator[np.ndarray], rows: int) -> Postings:
    """Encode the chunks (B, D) of one shard, in order, and invert what fires."""
    import torch

    parts, first = [], 0
    with torch.inference_mode():
        for chunk in chunks:
            features_BF = sae.encode(torch.from_numpy(chunk))
            at_P2 = features_BF.nonzero()
            values_P = features_BF[at_P2[:, 0], at_P2[:, 1]]
            parts.append((at_P2[:, 0].numpy() + first, at_P2[:, 1].numpy(), values_P.numpy()))
            first += len(chunk)
    row, feature, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    return invert(rows, sae.d_sae, row, feature, value)
