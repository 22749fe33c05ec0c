"""The device's memory: recognising that it is exhausted, and freeing cached blocks."""

from __future__ import annotations

import torch

MESSAGES = ("can't allocate memory", "MPS backend out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that an allocation failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in MESSAGES)


def release() -> None:
    """Free cached blocks of GPU memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
