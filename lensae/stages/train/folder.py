"""The folder of an SAE in training: which process has it, which training it belongs to, and how it is finished.

saes/<name>/training.json       completed_at is "" until every other file is written
saes/<name>/checkpoints/        removed when the training is finished
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lensae.core.durable import clear_partials, write_json
from lensae.core.errors import UserError
from lensae.core.locks import LOCK_FILE, FolderLock, is_locked
from lensae.core.paths import SaeEntry, SetEntry
from lensae.core.program import command
from lensae.core.training_record import TRAINING, TrainingRecord, read_training


class TrainingFolder:
    """The folder of an SAE in training, locked until it is closed or the process ends."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = FolderLock(path, activity="training", hint="wait for it, or give another --name")

    @property
    def checkpoint(self) -> Path:
        """The file of the training's checkpoint."""
        return checkpoint_of(self.path)

    def begin(self, record: TrainingRecord) -> None:
        """Write down what is trained here, unless that was done before an interruption."""
        clear_partials(self.path)
        clear_partials(self.checkpoint.parent)
        if not (self.path / TRAINING).is_file():
            write_json(self.path / TRAINING, record.to_json())

    def finish(self, record: TrainingRecord) -> None:
        """Record that the SAE is whole, and remove what only its training needed."""
        write_json(self.path / TRAINING, record.to_json())
        shutil.rmtree(self.checkpoint.parent, ignore_errors=True)

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()

    def discard(self) -> None:
        """Release the folder and remove it with everything in it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def checkpoint_of(folder: Path) -> Path:
    """The file of the checkpoint of the training in `folder`."""
    return folder / "checkpoints" / "last.safetensors"


def unfinished(sae: SaeEntry) -> dict:
    """How far an unfinished training is by its checkpoint (0 tokens without one), whether a process is running it, and
    the command that resumes it."""
    recorded = sae.training.command if sae.training else None
    facts = {
        "name": sae.name,
        "tokens": 0,
        "step": 0,
        "steps": None,
        "running": is_locked(sae.path),
        "command": recorded or command("train"),
    }
    with suppress(OSError, SafetensorError, KeyError, ValueError, TypeError):
        with safe_open(checkpoint_of(sae.path), "numpy") as file:
            run = json.loads(file.metadata()["run"])
        facts |= {"tokens": run["state"]["tokens"], "step": run["state"]["step"], "steps": run["plan"]["steps"]}
    return facts


def open_folder(entry: SetEntry, name: str, exact: bool, record: TrainingRecord) -> TrainingFolder:
    """The folder for the training of `record`: that of the same training, unfinished, or a new one.

    A name that is in use gets a number appended, or with `exact` raises UserError. Raises LensaeError when another
    process is running the training.
    """
    for candidate in _names(name):
        path = entry.path / "saes" / candidate
        if path.exists() and not _is_available(path, record):
            if exact:
                raise _name_in_use(path, entry)
            continue
        folder = TrainingFolder(path)
        if _is_available(path, record):  # still, now that the folder is locked
            folder.begin(record)
            return folder
        folder.close()
    raise AssertionError("there is always another name")


def _names(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def _is_available(path: Path, record: TrainingRecord) -> bool:
    """Whether the training of `record` may use this folder: it began in it, or the folder is empty."""
    recorded = read_training(path)
    if recorded is None:
        return all(inside.name == LOCK_FILE for inside in path.iterdir())
    return not recorded.completed_at and recorded.is_same_training(record)


def _name_in_use(path: Path, entry: SetEntry) -> UserError:
    recorded = read_training(path)
    if recorded is None or recorded.completed_at:
        return UserError(f"there is already an SAE '{path.name}' in {entry.name}", "give another --name, or remove it")
    return UserError(
        f"'{path.name}' in {entry.name} is an unfinished training with other settings or other rows",
        f"resume with: {recorded.command or command('train')}; or give another --name",
    )
