"""One process at a time in a folder, by a lock that the operating system releases when its process ends."""

from __future__ import annotations

from pathlib import Path

from lensae.core.errors import LensaeError

LOCK_FILE = ".lock"
PATIENCE_S = 0.5  # long enough to outlast `is_locked`, which takes the lock for a moment


class FolderLock:
    """An exclusive lock on `folder`, which is made if it is missing; usable as a context manager.

    With `wait` the call blocks until the lock is free; otherwise it raises LensaeError when another process has it,
    saying what that process is doing (`activity`, a verb before the folder's name) and the `hint`. The lock file stays
    in the folder after the release: removing it could let two processes in at once.
    """

    def __init__(
        self,
        folder: Path,
        *,
        activity: str = "writing to",
        hint: str = "wait for it, or give --name",
        wait: bool = False,
    ):
        from filelock import FileLock, Timeout

        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / LOCK_FILE, timeout=-1 if wait else PATIENCE_S, thread_local=False)
        try:
            self._lock.acquire(poll_interval=0.05)
        except Timeout:
            raise LensaeError(f"another process is {activity} {folder}", hint) from None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Let the next process in; nothing happens when the lock has been released before."""
        self._lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process has the lock of `folder` now; False where that cannot be found out."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK_FILE).is_file():
        return False
    try:
        with FileLock(folder / LOCK_FILE, timeout=0, thread_local=False):
            return False
    except Timeout:
        return True
    except OSError:  # no permission to open it
        return False
