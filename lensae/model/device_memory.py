"""The device's memory: recognising that it is exhausted, and freeing cached blocks."""

from __future__ import annotations

import torch

CPU_MESSAGE = "can't allocate memory"


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that an allocation failed, on the GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or CPU_MESSAGE in str(error)


def release() -> None:
    """Free cached blocks of GPU memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
