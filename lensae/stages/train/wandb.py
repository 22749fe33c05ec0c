"""Weights & Biases: the lines of metrics.csv as a run there, with `--wandb`."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lensae.core.durable import read_json, write_json
from lensae.core.errors import LensaeError, UserError
from lensae.core.paths import SetEntry
from lensae.stages.shared.processes import current
from lensae.stages.shared.progress import Progress
from lensae.stages.train.setup import Training
from lensae.stages.train.tensorboard import values_of
from lensae.stages.train.watcher import Watcher

if TYPE_CHECKING:
    import wandb

    from lensae.sae.train.run import Measurement

PROJECT = "lensae"


def check_available() -> None:
    """Raise UserError unless the package is installed; a folder of runs named `wandb` is not it."""
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:
        raise UserError("the package wandb is not installed", "pip install 'lensae[wandb]', or train without --wandb")


class WandbRun:
    """The measurements of one training by tokens, in a run whose id is kept in the SAE's folder (wandb.json).

    A resumed run gets the lines that it does not have yet, a new one the whole history. Raises LensaeError when no run
    can be started; a later failure is reported once, through `say`, and nothing more is logged.
    """

    def __init__(self, folder: Path, name: str, config: dict, history: list[Measurement], say: Callable[[str], None]):
        import wandb

        self.say = say
        identity = {"id": uuid.uuid4().hex[:12], "project": os.environ.get("WANDB_PROJECT", PROJECT)}
        identity = read_json(folder / "wandb.json") if (folder / "wandb.json").is_file() else identity
        try:
            self.run: wandb.Run | None = wandb.init(
                id=identity["id"],
                project=identity["project"],
                name=name,
                config=config,
                dir=str(folder),
                resume="allow",
                reinit="create_new",
                settings={"console": "off", "silent": True},
            )
        except Exception as error:
            hint = "wandb login, or WANDB_MODE=offline, or train without --wandb"
            raise LensaeError(f"no run could be started at Weights & Biases: {error}", hint) from None
        write_json(folder / "wandb.json", identity)
        next_step = self.run.step
        for line in history:
            if line.tokens >= next_step:
                self.add(line)

    def add(self, line: Measurement) -> None:
        """One more measurement."""
        self._do(lambda run: run.log({"epoch": line.epoch, **values_of(line)}, step=line.tokens))

    def close(self, failed: bool = False) -> None:
        """Send what is buffered, and whether the training failed."""
        self._do(lambda run: run.finish(exit_code=int(failed)))
        self.run = None

    def _do(self, work: Callable[[wandb.Run], object]) -> None:
        if self.run is None:
            return
        try:
            work(self.run)
        except Exception as error:
            self.run = None
            self.say(
                f"Weights & Biases failed ({error}); the training continues without it, metrics.csv has every line"
            )


class WandbWatcher(Watcher):
    """Logs the measurements to Weights & Biases and passes every call on to `watcher`; a context manager.

    Of the processes of one training, only the first has runs. Raises UserError when the package is missing.
    """

    def __init__(self, watcher: Watcher, say: Callable[[str], None]):
        check_available()
        self.watcher, self.say = watcher, say
        self.runs: dict[str, WandbRun] = {}

    def __enter__(self) -> WandbWatcher:
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        for run in self.runs.values():
            run.close(failed=kind is not None)
        self.runs = {}

    def started(self, entry: SetEntry, trainings: list[Training]) -> None:
        """Start or resume a run for every SAE."""
        for training in trainings if current().is_first else ():
            config = {"set": entry.name, "recipe": asdict(training.resolved), "plan": asdict(training.plan)}
            history = training.run.state.history
            self.runs[training.name] = WandbRun(training.path, training.name, config, history, self.say)
        self.watcher.started(entry, trainings)

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """Pass a batch on: only measurements are logged."""
        self.watcher.step(rows, losses)

    def measured(self, training: Training, line: Measurement) -> None:
        """Log a line of metrics.csv."""
        if run := self.runs.get(training.name):
            run.add(line)
        self.watcher.measured(training, line)

    def indexing(self) -> Progress:
        """The progress that the other watcher shows."""
        return self.watcher.indexing()
