"""Writing whole or not at all: a file or folder that has its name is complete, whatever was killed meanwhile."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
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
    """Write `value` so that a reader sees the old file or the new one, never half of either."""
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_file(path: Path, data: bytes) -> None:
    """Write and fsync `data` beside its place and rename it; nothing is left behind when that fails (a full disk)."""
    with new_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def new_file(path: Path, keep: bool = False) -> Iterator[Path]:
    """Give the place beside `path` where a large file is built piece by piece; it is fsynced and renamed at the end.

    Nothing is left behind when that fails. Raises FileExistsError when `keep` is set and `path` has come into being.
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
    """Where this process builds what will be `path`: two processes never build in one place."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def clear_partials(folder: Path) -> None:
    """Remove from `folder` what processes that are no longer alive left half built."""
    for path in folder.glob(".*.partial"):
        match = PARTIAL.search(path.name)
        if match and not _alive(int(match[1])):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's process
    return True


class Folder:
    """A folder that is filled beside its place and renamed into it at the end; nothing stays when that fails.

    Use it as a context manager that gives the folder to fill. When `target` has come into being meanwhile, `taken`
    decides: it is called with the target and returns another place, or None to drop what was built.
    """

    def __init__(self, target: Path, taken=lambda target: None):
        self.target, self.taken = target, taken

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        clear_partials(self.target.parent)
        self.path = partial_of(self.target)
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        return self.path

    def __exit__(self, kind, *_exc) -> None:
        try:
            if kind is None:
                self._move()
        finally:
            shutil.rmtree(self.path, ignore_errors=True)

    def _move(self) -> None:
        while self.target.exists():
            other = self.taken(self.target)
            if other is None:
                return
            self.target = other
        os.replace(self.path, self.target)
