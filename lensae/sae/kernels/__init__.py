"""Sparse features on their way through training: only the encoder's product is dense.

    Active, Dense          features of a batch, as an inverted pair (feature, value) per row, or as a matrix
    decode                 f W_dec + b_dec, its gradients only where features are active
    encode_topk, encode_batch_topk, encode_above
                           which pre-activations become features, selected while a block of them is in the cache
    choose_backend, use_backend
                           whether Triton's or PyTorch's operations do it: on CUDA devices the faster of the two
    reference              the same in plain dense formulas: what all of these are tested against

Everything is made of torch operations that exist on every device; some of it is there in Triton as well.
"""

from lensae.sae.kernels.across_processes import kth_largest, largest
from lensae.sae.kernels.active import Active, Dense, Features, Pattern
from lensae.sae.kernels.autotune import choose_backend
from lensae.sae.kernels.backend import Backend, use_backend
from lensae.sae.kernels.encode import encode_above, encode_batch_topk, encode_topk, pays_off, screening_dtype
from lensae.sae.kernels.linear import decode

__all__ = [
    "Active",
    "Backend",
    "Dense",
    "Features",
    "Pattern",
    "choose_backend",
    "decode",
    "encode_above",
    "encode_batch_topk",
    "encode_topk",
    "kth_largest",
    "largest",
    "pays_off",
    "screening_dtype",
    "use_backend",
]
