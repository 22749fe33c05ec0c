"""One writer per set: a lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from lensae.core.errors import LensaeError


class WriterLock:
    """Hold the set's `.lock` file; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise LensaeError(f"another process is writing to {folder}", "wait for it, or give --name") from None

    def release(self) -> None:
        """Let the next writer in."""
        os.close(self._file)
