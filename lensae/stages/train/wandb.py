"""Weights & Biases: the lines of metrics.csv as a run there, when it is asked for."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lensae.core.durable import read_json, write_json
from lensae.core.errors import LensaeError, UserError
from lensae.core.paths import SetEntry
from lensae.stages.shared.processes import current
from lensae.stages.train.run import Training
from lensae.stages.train.tensorboard import values_of
from lensae.stages.train.watcher import Watcher

PROJECT = "lensae"


def check_available() -> None:
    """Raise UserError unless the package is there; a folder of runs named `wandb` is not it."""
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:
        raise UserError("the package wandb is not installed", "pip install 'lensae[wandb]', or train without --wandb")


class WandbRun:
    """The measurements of one training by tokens, in a run whose number is kept in the SAE's folder (wandb.json).

    A run that is gone on with lacks only what it has not been told yet; a new one is told the whole history. Raises
    LensaeError when no run can be begun; once it has, what goes wrong is said (once) and nothing more is logged.
    """

    def __init__(self, folder: Path, name: str, config: dict, history: list, say: Callable[[str], None]):
        import wandb

        self.say = say
        told = {"id": uuid.uuid4().hex[:12], "project": os.environ.get("WANDB_PROJECT", PROJECT)}
        told = read_json(folder / "wandb.json") if (folder / "wandb.json").is_file() else told
        try:
            self.run = wandb.init(
                **told,
                name=name,
                config=config,
                dir=str(folder),
                resume="allow",
                reinit="create_new",
                settings={"console": "off", "silent": True},
            )
        except Exception as error:
            hint = "wandb login, or WANDB_MODE=offline, or train without --wandb"
            raise LensaeError(f"no run could be begun at Weights & Biases: {error}", hint) from None
        write_json(folder / "wandb.json", told)
        known = self.run.step
        for line in history:
            if line.tokens >= known:
                self.add(line)

    def add(self, line) -> None:
        """One more measurement."""
        self._do(lambda run: run.log({"epoch": line.epoch, **values_of(line)}, step=line.tokens))

    def close(self, failed: bool = False) -> None:
        """Hand over what is held back, and say how it ended."""
        self._do(lambda run: run.finish(exit_code=int(failed)))
        self.run = None

    def _do(self, work: Callable) -> None:
        if self.run is None:
            return
        try:
            work(self.run)
        except Exception as error:
            self.run = None
            self.say(f"Weights & Biases failed ({error}); the training goes on without it, metrics.csv has it all")


class Logged(Watcher):
    """Tells a watcher everything, and Weights & Biases the measurements; a context manager.

    Of the processes of one training, only the first has runs. Raises UserError when the package is missing.
    """

    def __init__(self, watcher: Watcher, say: Callable[[str], None]):
        check_available()
        self.watcher, self.say = watcher, say
        self.runs: dict[str, WandbRun] = {}

    def __enter__(self) -> Logged:
        return self

    def __exit__(self, kind, *_exc) -> None:
        for run in self.runs.values():
            run.close(failed=kind is not None)
        self.runs = {}

    def begins(self, entry: SetEntry, trainings: list[Training]) -> None:
        """A run for every SAE."""
        for training in trainings if current().is_first else ():
            config = {"set": entry.name, "recipe": asdict(training.settled), "plan": asdict(training.plan)}
            history = training.run.state.history
            self.runs[training.name] = WandbRun(training.folder.path, training.name, config, history, self.say)
        self.watcher.begins(entry, trainings)

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """A batch is done."""
        self.watcher.step(rows, losses)

    def epoch(self, training: Training, line) -> None:
        """A line of metrics.csv."""
        if run := self.runs.get(training.name):
            run.add(line)
        self.watcher.epoch(training, line)
