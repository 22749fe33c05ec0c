"""The process's memory: keeping what comes and goes at every step, and how much it has been."""

from __future__ import annotations

import ctypes
import platform
import re
import resource
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 * 2**20  # glibc takes no higher threshold


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 32 MiB for the next step, and say whether it does.

    By default it gives each back to the kernel, and every page of the next one is faulted in again, which costs a
    model's large activations more time than the arithmetic on them. It lasts for the life of the process.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage tells there may be the memory of the process that started this one
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
