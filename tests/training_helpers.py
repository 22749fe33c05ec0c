"""A made-up set that there is something to learn from, and trainings on it that are interrupted."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import HOOK, MODEL, document

from lensae.core.recipe import TrainRecipe
from lensae.sae.formats.saelens import WEIGHTS
from lensae.stages.train.run import train
from lensae.stages.train.watcher import Watcher
from lensae.store.writer import SetWriter, header

WIDTH = 16
TARGET_HOOK = "blocks.1.hook_mlp_out"
SMALL = TrainRecipe(width=2, k=4, batch=64, epochs=4)


def made(count: int = 40, rows: int = 25) -> list:
    """Documents whose rows are sums of a few directions, so that there is something to learn."""
    directions = np.random.default_rng(7).normal(size=(24, WIDTH)).astype(np.float32)
    found = []
    for number in range(count):
        random = np.random.default_rng(number)
        weights = random.random((rows, 24)) * (random.random((rows, 24)) < 0.15)
        found.append(
            replace(document(number, rows, WIDTH), activations={HOOK: (weights @ directions).astype(np.float32)})
        )
    return found


def write_target(folder: Path, documents: list, width: int) -> None:
    turn = np.random.default_rng(5).normal(size=(WIDTH, width)).astype(np.float32)
    about = header(MODEL, TARGET_HOOK, width, "float32", {})
    with SetWriter(folder, about, {"corpus": "made-up", "seed": 0}, "python main.py collect", shard_rows=300) as writer:
        for one in documents:
            writer.append(replace(one, activations={TARGET_HOOK: one.activations[HOOK] @ turn}))
        writer.finish()


class Stops(Watcher):
    """Interrupts after so many steps."""

    def __init__(self, after: int):
        self.left = after

    def step(self, rows: int, losses: list) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def digest(sae: Path) -> str:
    return hashlib.sha256((sae / WEIGHTS).read_bytes()).hexdigest()


def metrics(sae: Path) -> list[dict]:
    with open(sae / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def interrupted(recipe: TrainRecipe, after: int, name: str):
    with pytest.raises(KeyboardInterrupt):
        train(recipe, name=name, watcher=Stops(after))


def broken_after(monkeypatch, steps: int, name: str = "topk"):
    """A family whose loss is no number after so many steps."""
    from lensae.core import registry

    module = registry.load("sae.architectures", name)
    forward = module.Trainer.forward

    def broken(self, *rows):
        step = forward(self, *rows)
        if self.training and self.progress * 64 >= steps:
            step.losses["mse"] = step.losses["mse"] * float("nan")
        return step

    monkeypatch.setattr(module.Trainer, "forward", broken)
