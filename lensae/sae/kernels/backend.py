"""Which implementation of each sparse kernel is in use: PyTorch's operations, or Triton's (lensae.sae.kernels.autotune
decides)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Backend:
    """The kernels that are Triton's, the seconds that a call took by kernel and implementation, and why Triton was not
    to be had for a kernel."""

    triton: frozenset[str] = frozenset()
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


TORCH = Backend()
# Devices without PyTorch's sparse products: what is sparse is gathered into dense rows there. Not checked on hardware.
WITHOUT_SPARSE = ("mps",)
_current = TORCH


@contextmanager
def use_backend(backend: Backend) -> Iterator[Backend]:
    """These implementations, until the end."""
    global _current
    before, _current = _current, backend
    try:
        yield backend
    finally:
        _current = before


def current() -> Backend:
    """What is used now."""
    return _current


def implementation(kernel: str, plain: Callable) -> Callable:
    """The implementation to call: Triton's, or the one given."""
    if kernel not in _current.triton:
        return plain
    from lensae.sae.kernels import triton

    return getattr(triton, kernel)
