"""The trainers that are compared, and what each needs to be at its best: its learning rate, and the weight of its
sparsity where it has no k.

A run is what a contestant answers to a case of the quality part, with its `lr_factor`.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from turns import Contestant

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("topk", "batchtopk", "relu", "jumprelu", "gated")
D_MODEL = 576
TOLERANCE = 0.2  # of k: how far L0 may be off
HIGHEST_FACTOR = 90  # of the learning rate: beyond it none is tried


@dataclass(frozen=True)
class Tool:
    """A trainer: its script, its environment (None: this one), and what of it is searched."""

    script: str
    peer: str | None
    families: tuple[str, ...] = FAMILIES
    lr_factors: tuple[float, ...] = (1.0, 3.0, 10.0)  # defaults meant for long trainings
    weighed: tuple[str, ...] = ()  # families whose sparsity follows from a weight

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return ROOT / (f".peers/{self.peer}" if self.peer else ".venv") / "bin" / "python"

    def contestant(self, name: str, settings: dict, log: Path) -> Contestant:
        """Its process."""
        return Contestant(name, self.script, settings, log, str(self.python))


TOOLS = {
    "lensae": Tool("trains_lensae.py", None, lr_factors=(1 / 3, 1.0, 3.0)),
    "SAELens": Tool("trains_saelens.py", "sae-lens", weighed=("relu", "jumprelu", "gated")),
    "dictionary_learning": Tool("trains_dictionary.py", "dictionary-learning", weighed=("relu", "gated")),
    "sparsify": Tool("trains_sparsify.py", "eai-sparsify", ("topk",), (1 / 3, 1.0, 3.0)),
}


def quality_run(one: Contestant, tool: Tool, job: dict, folder: Path) -> dict:
    """One training of the quality part: its figures, and the `folder` its SAE is in, inside the one that is given.

    A peer's is done once: what the same script has made of the same job is taken as it is.
    """
    script = (Path(__file__).parent / "contestants" / tool.script).read_bytes()
    key = hashlib.sha256(script + json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
    found = folder / key / "run.json"
    if tool.peer is None or not found.is_file():
        run = one.turn({"part": "quality", "job": job, "folder": str(folder / key)})
        found.write_text(json.dumps(run))
    return json.loads(found.read_text()) | {"folder": str(folder / key)}


def tools_of(family: str, names: list[str]) -> dict[str, Tool]:
    """Those of `names` that have the family and are installed."""
    chosen = {name: TOOLS[name] for name in names if family in TOOLS[name].families}
    return {name: tool for name, tool in chosen.items() if tool.python.is_file()}


def job(family: str, width: int, k: int, batch: int, steps: int, **more) -> dict:
    """What contestants/trains_shared.py calls a Job."""
    shape = {"d_model": D_MODEL, "d_sae": width, "k": k, "batch": batch, "steps": steps}
    return {"family": family, **shape, **more}


def explained(run: dict) -> float:
    """Explained variance on held-out rows; the worst of all when it is no number."""
    value = run["trained"]["explained_variance"]
    return -math.inf if value is None else value


class Search:
    """The search of one contestant for one job; for each learning rate at most `tries` weights are tried. The SAE of
    every run is kept in a folder of its own inside `folder`."""

    def __init__(self, one: Contestant, tool: Tool, job: dict, tries: int, folder: Path):
        self.one, self.tool, self.job, self.folder = one, tool, job, folder
        self.tries = tries if job["family"] in tool.weighed else 1
        self.k = job["k"]

    def runs(self) -> list[dict]:
        """Every learning rate, and higher ones while the highest is the best; the best run is marked."""
        runs: list[dict] = []
        factors = list(self.tool.lr_factors)
        weight = None
        for factor in factors:
            found = self.weighed(factor, weight)
            weight = min(found, key=self.distance)["penalty"]
            runs += found
            if factor == factors[-1] and factor < HIGHEST_FACTOR and self.best(runs)["lr_factor"] == factor:
                factors.append(3 * factor)
        best = self.best(runs)
        return [run | {"best": run is best, "off_k": not self.near(run)} for run in runs]

    def weighed(self, factor: float, weight: float | None) -> list[dict]:
        """The runs of one learning rate: with several tries, at weights of the sparsity that move towards L0 = k, from
        `weight` on (None: the documented one)."""
        runs: list[dict] = []
        for _ in range(self.tries):
            job = self.job | {"lr_factor": factor, "penalty": weight}
            runs.append({"lr_factor": factor, **quality_run(self.one, self.tool, job, self.folder)})
            if self.near(runs[-1]) or runs[-1]["penalty"] is None:
                break
            weight = self.next_weight([(run["penalty"], run["trained"]["l0"]) for run in runs])
        return runs

    def next_weight(self, tried: list[tuple[float, float]]) -> float:
        """The weight that should give L0 = k: on the line through the last two points in logarithms, at most a factor
        of 10 away; a single point is taken as L0 ~ 1 / weight."""
        points = [(math.log(weight), math.log(max(l0, 0.1) / self.k)) for weight, l0 in tried]
        slope = -1.0
        if len(points) > 1 and points[-1][0] != points[-2][0]:
            slope = (points[-1][1] - points[-2][1]) / (points[-1][0] - points[-2][0])
        move = -points[-1][1] / min(slope, -0.2)
        return math.exp(points[-1][0] + max(-math.log(10), min(math.log(10), move)))

    def best(self, runs: list[dict]) -> dict:
        """The best explained variance among those near k, or the run that is closest to it."""
        comparable = [run for run in runs if self.near(run)]
        return max(comparable, key=explained) if comparable else min(runs, key=self.distance)

    def near(self, run: dict) -> bool:
        """Whether its L0 is close enough to k."""
        return abs(run["trained"]["l0"] / self.k - 1) <= TOLERANCE

    def distance(self, run: dict) -> float:
        """How far its L0 is from k, in logarithms."""
        return abs(math.log(max(run["trained"]["l0"], 0.1) / self.k))
