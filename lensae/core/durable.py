"""Atomic writes: a file or folder that has its final name is complete, even if the process was killed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lensae.core.errors import DamagedError

PARTIAL = re.compile(r"\.(\d+)\.partial$")


def read_json(path: Path) -> dict:
    """A JSON object from disk; raises DamagedError naming the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} is not JSON ({error})", "it was edited or cut short") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path} does not hold a JSON object", "it was edited or cut short")
    return value


def write_json(path: Path, value: dict) -> None:
    """Write `value` atomically: a reader sees the old file or the new one, never half of either."""
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write and fsync `data` beside `path` and rename it; nothing is left behind when that fails (a full disk)."""
    with new_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def new_file(path: Path, keep: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write a large file to; it is fsynced and renamed to `path` at the end.

    Nothing is left behind when that fails. Raises FileExistsError when `keep` is set and `path` exists by then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        if keep and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_of(path: Path) -> Path:
    """The temporary path under which this process builds `path`; no two processes share one."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def clear_partials(folder: Path) -> None:
    """Remove from `folder` the partial files and folders of processes that are no longer alive."""
    for path in folder.glob(".*.partial"):
        match = PARTIAL.search(path.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid)


class Folder:
    """A folder that is filled under a temporary name and renamed to `target` at the end; nothing stays on failure.

    Use it as a context manager that gives the folder to fill. When `target` exists by the end, `resolve_conflict` is
    called with it and returns another target, or None to drop the new folder.
    """

    def __init__(self, target: Path, resolve_conflict: Callable[[Path], Path | None] = lambda target: None):
        self.target, self.resolve_conflict = target, resolve_conflict

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        clear_partials(self.target.parent)
        self.path = partial_of(self.target)
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        return self.path

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        try:
            if kind is None:
                self._move()
        finally:
            shutil.rmtree(self.path, ignore_errors=True)

    def _move(self) -> None:
        while self.target.exists():
            other = self.resolve_conflict(self.target)
            if other is None:
                return
            self.target = other
        os.replace(self.path, self.target)
