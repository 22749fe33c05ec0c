"""Which device computes: what was asked for, if this machine has it. torch is imported only when a device is chosen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lensae.core.errors import UserError, nearest

AUTO = "auto"
KINDS = ("cuda", "mps", "cpu")
_requested: ContextVar[str] = ContextVar("requested device", default=AUTO)


@contextmanager
def use_device(name: str) -> Iterator[None]:
    """Compute on `name` ("auto", "cpu", "cuda", "cuda:1" or "mps") until the end.

    Raises UserError for another name; whether the machine has the device shows when it is first needed.
    """
    token = _requested.set(_checked_name(name))
    try:
        yield
    finally:
        _requested.reset(token)


def requested_device() -> str:
    """The name that `use_device` was given, "auto" outside of it."""
    return _requested.get()


def current_device() -> str:
    """The device to compute on now; raises UserError when this machine does not have it."""
    return choose(_requested.get())


def choose(name: str = AUTO) -> str:
    """The PyTorch device that `name` means: "cuda", "cuda:1", "mps" or "cpu".

    "auto" is CUDA where there is a GPU, else the CPU; MPS has to be asked for. Raises UserError for a device that this
    machine does not have, saying which it has.
    """
    kind, _, number = _checked_name(name).partition(":")
    if kind == AUTO:
        return "cpu" if unavailable("cuda") else "cuda"
    reason = unavailable(kind)
    if not reason and number and int(number) >= _cuda_count():
        reason = f"the GPUs here are {', '.join(f'cuda:{i}' for i in range(_cuda_count()))}"
    if reason:
        raise UserError(f"the device {name} is not available: {reason}", f"this machine has {', '.join(available())}")
    return name


def available() -> list[str]:
    """The kinds of device that this machine has, the fastest first."""
    return [kind for kind in KINDS if not unavailable(kind)]


def unavailable(kind: str) -> str:
    """Why this machine cannot compute on a kind of device, or "" when it can."""
    import torch

    if kind == "cuda" and not torch.cuda.is_available():
        has_cuda = torch.version.cuda or torch.version.hip
        return "PyTorch sees no GPU or no driver for it" if has_cuda else "this PyTorch is built without CUDA"
    if kind == "mps" and not torch.backends.mps.is_available():
        built = torch.backends.mps.is_built()
        return "it needs an Apple GPU and macOS 14" if built else "this PyTorch is built without MPS (for Apple GPUs)"
    return ""


def _cuda_count() -> int:
    import torch

    return torch.cuda.device_count()


def _checked_name(name: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        return name
    names = (AUTO, *KINDS)
    raise UserError(f"no device named '{name}'", nearest(name, names) or "one of auto, cpu, cuda, cuda:1 and mps")
