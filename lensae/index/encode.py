"""From the rows of a shard to the features that fire on them.

Shapes: B rows of a batch, D d_model, P firings, T rows of a shard; a 1 behind a letter is one more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from lensae.index.ordering import indptr_of
from lensae.index.rows import EncodedRows

if TYPE_CHECKING:
    import torch

    from lensae.sae.base import SAE

PROBE_ROWS = 1024  # rows from which the number of firings per row is guessed
MOST_FIRINGS = 2**22  # of the rows that are encoded at once, so that an SAE with dense features fits into memory


def encode_shard(sae: SAE, arrays: Iterable[np.ndarray]) -> EncodedRows:
    """The features of the rows of one shard, given in order as arrays (B, D); a feature fires where it is above 0."""
    import torch

    none = np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
    parts, first, size = [none], 0, PROBE_ROWS
    with torch.inference_mode():
        for array_BD in arrays:
            start = 0
            while start < len(array_BD):
                part_BD = torch.from_numpy(array_BD[start : start + size]).to(sae.W_dec.device).float()
                parts.append(_firings(sae, part_BD, first + start))
                start += len(part_BD)
                size = max(64, MOST_FIRINGS * len(part_BD) // max(1, len(parts[-1][0])))
            first += len(array_BD)
    row_P, feature_P, value_P = (np.concatenate(column) for column in zip(*parts, strict=True))
    return EncodedRows(indptr_T1=indptr_of(row_P, first), feature_P=feature_P, value_P=value_P, features=sae.d_sae)


def _firings(sae: SAE, rows_BD: torch.Tensor, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, feature and value of what fires on some rows, of which `first` is the first one's number."""
    row_P, feature_P, value_P = sae.encode_sparse(rows_BD)
    fires_P = value_P > 0
    if not bool(fires_P.all()):
        row_P, feature_P, value_P = row_P[fires_P], feature_P[fires_P], value_P[fires_P]
    return (row_P.int() + first).cpu().numpy(), feature_P.int().cpu().numpy(), value_P.cpu().numpy()
