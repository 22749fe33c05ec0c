"""A process that is found again as it was: what a call of the library may not leave changed behind it.

The command line owns its process and may set what it likes for good; a caller of the library does not expect that.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import numpy as np

_undo: ContextVar[ExitStack | None] = ContextVar("what is undone at the end of a library call", default=None)


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Restore, at the end, the random states (Python's, NumPy's and torch's), the environment, torch's settings and
    whatever was registered with `undo_later`.

    Within, torch computes gradients, in float32 by default and without shortened products, and makes tensors on the
    CPU, whatever the caller has set: the same call gives the same result.
    """
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(_restore_environment, dict(os.environ))
        _restore_torch_later(stack)
        stack.callback(_undo.reset, _undo.set(stack))
        yield


def is_library_call() -> bool:
    """Whether the process is somebody else's, to be left as it was."""
    return _undo.get() is not None


def undo_later(undo: Callable[[], object]) -> None:
    """Call `undo` at the end of the library call; outside of one, never."""
    stack = _undo.get()
    if stack is not None:
        stack.callback(undo)


def _restore_environment(before: dict[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _restore_torch_later(stack: ExitStack) -> None:
    import torch

    stack.callback(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    if torch.backends.mps.is_available():
        stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    stack.enter_context(torch.enable_grad())
    if torch.get_default_device().type != "cpu":  # this costs a little at every operation
        stack.enter_context(torch.device("cpu"))
