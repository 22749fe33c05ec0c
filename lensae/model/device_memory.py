"""The device's memory: whether an error means that there is none left, and giving back what is kept for later."""

from __future__ import annotations

import torch

MESSAGES = ("can't allocate memory", "MPS backend out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that an allocation failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in MESSAGES)


def release() -> None:
    """Give cached blocks back to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
