"""The trainers that are compared, and what each needs to be at its best: its learning rate, and the weight of its
sparsity where it has no k.

A run is what a contestant answers to a case of the quality part, with its `lr_factor`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from contestants.trains_rows import Rows
from interleaved_runs import Contestant, started

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("topk", "batchtopk", "relu", "jumprelu", "gated")
D_MODEL = 576
TOLERANCE = 0.2  # of k: how far L0 may be off
NO_K = ("relu", "gated")  # families whose sparsity lensae aims at with a target L0
FACTORS = (0.1, 100.0)  # of the learning rate: beyond these none is tried


@dataclass(frozen=True)
class Tool:
    """A trainer: its script, its environment (None: this one), and what of it is searched."""

    script: str
    peer: str | None
    families: tuple[str, ...] = FAMILIES
    lr_factors: tuple[float, float] = (3.0, 10.0)  # tried first: the defaults are meant for long trainings
    weighed: tuple[str, ...] = ()  # families whose sparsity follows from a weight

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return ROOT / (f".peers/{self.peer}" if self.peer else ".venv") / "bin" / "python"

    def contestant(self, name: str, settings: dict, log: Path) -> Contestant:
        """Its process."""
        return Contestant(name, self.script, settings, log, str(self.python))


TOOLS = {
    "lensae": Tool("trains_lensae.py", None, lr_factors=(1.0, 3.0)),
    "SAELens": Tool("trains_saelens.py", "sae-lens", weighed=("relu", "jumprelu", "gated")),
    "dictionary_learning": Tool("trains_dictionary.py", "dictionary-learning", weighed=("relu", "gated")),
    "sparsify": Tool("trains_sparsify.py", "eai-sparsify", ("topk",), (1.0, 3.0)),
}


def quality_run(one: Contestant, tool: Tool, job: dict, folder: Path) -> dict:
    """One training of the quality part: its figures, and the `folder` its SAE is in, inside the one that is given.

    A peer's is done once: what the same script has made of the same job is taken as it is.
    """
    script = (Path(__file__).parent / "contestants" / tool.script).read_bytes()
    key = hashlib.sha256(script + json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
    found = folder / key / "run.json"
    if tool.peer is None or not found.is_file():
        run = one.run({"part": "quality", "job": job, "folder": str(folder / key)})
        found.write_text(json.dumps(run))
    return json.loads(found.read_text()) | {"folder": str(folder / key)}


def tools_of(family: str, names: list[str]) -> dict[str, Tool]:
    """Those of `names` that have the family and are installed."""
    chosen = {name: TOOLS[name] for name in names if family in TOOLS[name].families}
    return {name: tool for name, tool in chosen.items() if tool.python.is_file()}


def whole_seconds(name: str, tool: Tool, rows: Rows, job: dict, log: Path) -> dict:
    """The seconds of one pass over the training rows from the start of the process on, and how many rows they are.

    Of lensae it is the command `train` with all that it measures, writes and draws, without the feature index, which
    the other tools do not make. Of the others it is their imports, their steps and the writing of what they keep; they
    are given no held-out rows to evaluate.
    """
    clock = time.perf_counter()
    if tool.peer:
        settings = {"rows": str(rows.path), "training": rows.training}
        with started([tool.contestant(name, settings, log)]) as [one]:
            trained_rows = one.run({"part": "pass", "job": job})["tokens"]
            return {"seconds": time.perf_counter() - clock, "rows": trained_rows}
    sparsity = ["--target-l0", job["k"]] if job["family"] in NO_K else ["--k", job["k"]]
    words = ["train", "--arch", job["family"], "--width", job["d_sae"] / D_MODEL, *sparsity, "--batch", job["batch"]]
    words += ["--epochs", 1, "--no-index", "--name", "whole-pass", "--json"]
    environment = {**os.environ, "LENSAE_STORE": str(rows.store)}
    command = [str(tool.python), str(ROOT / "main.py"), *map(str, words)]
    with open(log, "a") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, check=True)
    seconds, report = time.perf_counter() - clock, json.loads(done.stdout)
    shutil.rmtree(report["path"])
    return {"seconds": seconds, "rows": report["plan"]["rows"]}


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
        """Two learning rates, then higher ones while the highest is the best and lower ones while the lowest is; the
        best run is marked."""
        runs, weight, factors = [], None, []
        waiting = list(self.tool.lr_factors)
        while waiting:
            factor = waiting.pop(0)
            factors = sorted([*factors, factor])
            found = self.weighed(factor, weight)
            weight = min(found, key=self.distance)["penalty"]
            runs += found
            best = self.best(runs)
            if not waiting and best["lr_factor"] in (factors[0], factors[-1]):
                beyond = 3 * factors[-1] if best["lr_factor"] == factors[-1] else factors[0] / 3
                waiting = [beyond] if FACTORS[0] <= beyond <= FACTORS[1] else []
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
