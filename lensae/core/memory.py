"""The process's memory: keeping freed blocks for the next step, and the peak."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

from lensae.core.process_state import is_library_call

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGEST = 32 * 2**20  # glibc takes no higher threshold


def keep_freed_memory(any_size: bool = False) -> bool:
    """Let glibc keep freed blocks of up to 32 MiB, or of `any_size`, for the next step; returns whether it does.

    By default it returns each block to the kernel, and every page of the next one is faulted in again, which costs a
    model's large activations more time than the arithmetic on them. Training asks for `any_size`: its blocks of
    pre-activations pass 32 MiB in a wide SAE, and are the same at every step, so that nothing is kept in vain; those
    of collecting differ with the lengths of the texts, and larger ones are let go of. It lasts for the life of the
    process, so it is for the command line alone: in a call of the library nothing is done, nor elsewhere than on glibc.
    """
    if is_library_call() or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mapped = mallopt(M_MMAP_MAX, 0) if any_size else mallopt(M_MMAP_THRESHOLD, LARGEST)
    return bool(mapped) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux getrusage may report the memory of the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_memory() -> int:
    """The memory of this machine in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)
