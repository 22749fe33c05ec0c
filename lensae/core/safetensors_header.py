"""The header of a safetensors file, for writers that do not hold every tensor in memory.

A file is the length of the header (8 bytes, little-endian), the header as JSON and the tensors' bytes, one after
another (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

# NumPy's and PyTorch's name of a type: the format's name of it, bytes of one element.
DTYPES = {
    "float16": ("F16", 2),
    "float32": ("F32", 4),
    "float64": ("F64", 8),
    "int32": ("I32", 4),
    "int64": ("I64", 8),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: the name of its type, as NumPy has it, and its shape."""

    dtype: str
    shape: Sequence[int]

    @property
    def nbytes(self) -> int:
        """Bytes of all its elements."""
        return prod(self.shape) * DTYPES[self.dtype][1]


def header_bytes(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Everything before the tensors' bytes, which then follow in the order of `tensors`; a multiple of 8 bytes."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, info in tensors.items():
        start, end = end, end + info.nbytes
        header[name] = {"dtype": DTYPES[info.dtype][0], "shape": list(info.shape), "data_offsets": [start, end]}
    data = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data
