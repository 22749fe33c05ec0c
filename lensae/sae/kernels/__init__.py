"""Sparse features on their way through training: only the encoder's product is dense.

    Active, Dense          features of a batch, as an inverted pair (feature, value) per row, or as a matrix
    decode                 f W_dec + b_dec, its gradients only where features are active
    topk, batch_topk, above    which pre-activations become features, found while a block of them is in the cache
    reference              the same in plain dense formulas: what all of these are tested against

Everything is made of torch operations that exist on every device.
"""

from lensae.sae.kernels.active import Active, Dense, Features, Pattern
from lensae.sae.kernels.divided import kth_largest, largest
from lensae.sae.kernels.encode import above, batch_topk, pays_off, topk
from lensae.sae.kernels.linear import decode

__all__ = [
    "Active",
    "Dense",
    "Features",
    "Pattern",
    "above",
    "batch_topk",
    "decode",
    "kth_largest",
    "largest",
    "pays_off",
    "topk",
]
