"""Run under torchrun by test_ranks.py: trains what a JSON file says, as one of several processes.

{"set": name, "by_feature": bool, "trainings": [[{recipe}, name], ...]}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from lensae.recipe import TrainRecipe
from lensae.stages.ranks import leave, trained_together
from lensae.stages.train import train_all
from lensae.stages.training_data import open_data


def main() -> None:
    """Trainings that share their rows are trained on one stream."""
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    groups: dict[tuple, list] = {}
    for settings, name in job["trainings"]:
        recipe = TrainRecipe(**settings)
        groups.setdefault((recipe.target, recipe.batch), []).append((recipe, name))
    with trained_together(job["by_feature"]) as world:
        for wanted in groups.values():
            reports = train_all(open_data(wanted[0][0], job["set"]), wanted, world=world)
            for report in filter(None, reports):
                if isinstance(report, Exception):
                    raise report


if __name__ == "__main__":
    main()
    leave()
