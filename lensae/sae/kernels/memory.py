"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


def keep_large_buffers() -> bool:
    """Ask glibc to hold on to freed memory (mallopt(3)); whether it agreed.

    By default every large tensor is mapped afresh and returned when freed, so that each step spends a tenth of its
    time on page faults. It holds for the rest of the process; elsewhere than on glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
