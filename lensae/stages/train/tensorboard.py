"""TensorBoard event files beside metrics.csv, where the tensorboard package is installed; nothing otherwise."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lensae.sae.train.run import Measurement

NOT_DRAWN = ("epoch", "step", "tokens", "losses", "best")


def available() -> bool:
    """Whether the tensorboard package is installed."""
    return importlib.util.find_spec("tensorboard") is not None


def values_of(line: Measurement) -> dict[str, float]:
    """The curves of a line of metrics.csv, by name; the parts of the loss are "loss/..."."""
    values = {name: value for name, value in asdict(line).items() if name not in NOT_DRAWN}
    return values | {f"loss/{name}": value for name, value in line.losses.items()}


class EventFile:
    """The measurements of one training by tokens: its history is written again, then line by line."""

    def __init__(self, folder: Path, history: list[Measurement]):
        self.writer = None
        if available():
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(folder, ignore_errors=True)
            self.writer = SummaryWriter(str(folder), flush_secs=10)
            for line in history:
                self.add(line)

    def add(self, line: Measurement) -> None:
        """One more measurement."""
        if self.writer is not None:
            for name, value in values_of(line).items():
                self.writer.add_scalar(name, value, line.tokens)

    def close(self) -> None:
        """Write what is buffered."""
        if self.writer is not None:
            self.writer.close()
