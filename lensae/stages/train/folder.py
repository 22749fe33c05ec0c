"""The folder of an SAE while it is being trained: whose it is, what it belongs to, and how it becomes a finished one.

saes/<name>/training.json       completed_at is "" until everything else is in its place
saes/<name>/checkpoints/        gone when it is finished
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lensae.core.durable import clear_partials, read_json, write_json
from lensae.core.errors import UserError
from lensae.core.locks import LOCK_FILE, FolderLock, is_locked
from lensae.core.paths import SaeEntry, SetEntry
from lensae.core.program import command

SAME = ("recipe", "set", "target")  # a training is gone on with when these are what they were


class TrainingFolder:
    """The folder of an SAE in training, locked until it is closed or the process ends."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = FolderLock(path, activity="training", hint="wait for it, or give another --name")

    @property
    def checkpoint(self) -> Path:
        """Where the state of the training is kept."""
        return checkpoint_of(self.path)

    def begin(self, facts: dict) -> None:
        """Say what is being trained here, unless it has been said."""
        clear_partials(self.path)
        clear_partials(self.checkpoint.parent)
        if not (self.path / "training.json").is_file():
            write_json(self.path / "training.json", {"completed_at": "", **facts})

    def finish(self, facts: dict) -> None:
        """The SAE is whole: say so, and let go of what only its training needed."""
        write_json(self.path / "training.json", facts)
        shutil.rmtree(self.checkpoint.parent, ignore_errors=True)

    def close(self) -> None:
        """Let the next process in."""
        self._lock.release()

    def discard(self) -> None:
        """Remove the folder, which lets the next process in."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def checkpoint_of(folder: Path) -> Path:
    """Where the state of the training in a folder is kept."""
    return folder / "checkpoints" / "last.safetensors"


def unfinished(sae: SaeEntry) -> dict:
    """How far a training has come by its checkpoint (0 tokens without one), whether a process is at it now, and the
    command that resumes it."""
    resume_command = sae.training.get("command") or command("train")
    facts = {
        "name": sae.name,
        "tokens": 0,
        "step": 0,
        "steps": None,
        "running": is_locked(sae.path),
        "command": resume_command,
    }
    with suppress(OSError, SafetensorError, KeyError, ValueError, TypeError):
        with safe_open(checkpoint_of(sae.path), "numpy") as file:
            run = json.loads(file.metadata()["run"])
        facts |= {"tokens": run["state"]["tokens"], "step": run["state"]["step"], "steps": run["plan"]["steps"]}
    return facts


def claim(entry: SetEntry, name: str, exact: bool, facts: dict) -> TrainingFolder:
    """The folder for a training of these `facts`: an unfinished one of the same, or one that is new.

    A name that is taken gets a number behind it, or with `exact` raises UserError. Raises LensaeError when another
    process is at it.
    """
    for free in _names(name):
        path = entry.path / "saes" / free
        if path.exists() and not _open(path, facts):
            if exact:
                raise _taken(path, entry)
            continue
        folder = TrainingFolder(path)
        if _open(path, facts):  # still, now that it is ours
            folder.begin(facts)
            return folder
        folder.close()
    raise AssertionError("there is always another name")


def _names(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def _open(path: Path, facts: dict) -> bool:
    """Whether the training can have this folder: it began there, or nobody did."""
    if (path / "training.json").is_file():
        begun = read_json(path / "training.json")
        plain = json.loads(json.dumps(facts))
        return not begun.get("completed_at") and all(begun.get(key) == plain.get(key) for key in SAME)
    return all(inside.name == LOCK_FILE for inside in path.iterdir())


def _taken(path: Path, entry: SetEntry) -> UserError:
    begun = read_json(path / "training.json") if (path / "training.json").is_file() else {"completed_at": "unknown"}
    if begun.get("completed_at"):
        return UserError(f"there is already an SAE '{path.name}' in {entry.name}", "give another --name, or remove it")
    return UserError(
        f"'{path.name}' in {entry.name} is an unfinished training with other settings or other rows",
        f"resume with: {begun.get('command') or command('train')}; or give another --name",
    )
