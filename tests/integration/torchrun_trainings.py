"""Trainings by several processes, for test_torchrun_training.py: what a JSON file says.

{"set": name, "by_feature": bool, "trainings": [[{recipe}, name], ...]}
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lensae.core.recipe import TrainRecipe
from lensae.stages.shared.processes import leave, training_group
from lensae.stages.train.data import open_data
from lensae.stages.train.run import train_all


def main(path: str) -> None:
    """Run by each process: trainings that share their rows are trained on one stream."""
    torch.set_num_threads(1)
    job = json.loads(Path(path).read_text())
    groups: dict[tuple, list] = {}
    for settings, name in job["trainings"]:
        recipe = TrainRecipe(**settings)
        groups.setdefault((recipe.target, recipe.batch), []).append((recipe, name))
    with training_group(job["by_feature"]) as group:
        for wanted in groups.values():
            reports = train_all(open_data(wanted[0][0], job["set"]), wanted, group=group)
            for report in filter(None, reports):
                if isinstance(report, Exception):
                    raise report
    leave()
