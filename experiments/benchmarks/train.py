"""Training beside SAELens, dictionary_learning and sparsify, on the same real activations. `make bench-train`.

The rows are those of smollm2-135m after block 15, float32, shuffled once; whole documents at the end are held out.
Every contestant is a process of its own, is given the raw rows in the same order, and applies the normalisation, the
optimizer, the schedules and the auxiliary loss that its documentation recommends (quoted in its script).

Speed: tokens/s of full training steps, medians over interleaved repeats, beside the encoder's product alone ("floor":
through oneDNN, and at PyTorch's default). Auxiliary losses cost nothing while no feature counts as dead: the peers'
windows are longer than this run, lensae's is not. "others" is how many cores other processes kept busy meanwhile, in
the worst turn: a line where that is not about 0 was disturbed.

Quality: one pass over the training rows, the same tokens for all; explained variance, L0 and dead features on the
held-out rows by one and the same code; "typical" leaves out the few rows of massive norm, which hold much of the
variance; "saved" is what the SAE does as it is kept for use, where that differs. Each learning rate is the tool's
documented one times the factors of a small grid, which goes on upwards while its highest is the best; where sparsity
has a weight and no k, the weight is searched for L0 = k as well. Shown is the best explained variance among the runs
whose L0 is within a fifth of k, or, if there is none, the run closest to it ("off k").
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from contestants.trains_report import Results, explained, show_quality, show_speed
from contestants.trains_rows import HOOK, rows_file
from turns import Contestant, interleaved, started

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FAMILIES = ("topk", "batchtopk", "relu", "jumprelu", "gated")
WIDTHS = (4608, 18432)
QUALITY_WIDTH = 4608
D_MODEL, K, BATCH = 576, 32, 4096
TIMED_STEPS = {4608: 8, 18432: 3}
WARM_STEPS = 3
TOLERANCE = 0.2  # of k: how far L0 may be off
PENALTY_TRIES = 3
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


TOOLS = {
    "lensae": Tool("trains_lensae.py", None, lr_factors=(1 / 3, 1.0, 3.0)),
    "SAELens": Tool("trains_saelens.py", "sae-lens", weighed=("relu", "jumprelu", "gated")),
    "dictionary_learning": Tool("trains_dictionary.py", "dictionary-learning", weighed=("relu", "gated")),
    "sparsify": Tool("trains_sparsify.py", "eai-sparsify", ("topk",), (1 / 3, 1.0, 3.0)),
}
FLOORS = {"floor, oneDNN": "medium", "floor": "highest"}


def main() -> None:
    """Run the parts that are asked for, print their tables as they come, write results/train.json."""
    options = arguments()
    path, training = rows_file(options.rows, BATCH)
    settings = {"rows": str(path), "training": training}
    results = Results(
        Path(options.results), {"hook": HOOK, "rows": options.rows, "training_rows": training, "k": K, "batch": BATCH}
    )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        if options.part != "quality":
            for width, family in itertools.product(options.widths, options.families):
                rows = speeds(family, width, settings, options, log)
                results.note("speed", rows)
                show_speed(rows)
        if options.part != "speed":
            for family in options.families:
                runs: list[dict] = []
                for name, tool in tools(family, options).items():
                    runs += qualities(name, tool, family, settings, options, log)
                    results.note("quality", runs)
                show_quality(runs)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("speed", "quality", "both"), default="both")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--widths", nargs="+", type=int, choices=WIDTHS, default=WIDTHS, help="of the speed part")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, help="timed steps a turn, rather than 8 and 3")
    parser.add_argument("--tries", type=int, default=PENALTY_TRIES, help="penalties tried for each learning rate")
    parser.add_argument("--helped", action="store_true", help="time the peers with oneDNN products as well")
    parser.add_argument("--results", default=str(HERE / "results" / "train.json"))
    return parser.parse_args()


def tools(family: str, options) -> dict[str, Tool]:
    """Those that have the family and are installed."""
    chosen = {name: TOOLS[name] for name in options.tools if family in TOOLS[name].families}
    return {name: tool for name, tool in chosen.items() if tool.python.is_file()}


def contestant(name: str, tool: Tool, settings: dict, log: Path) -> Contestant:
    """Its process."""
    return Contestant(name, tool.script, settings, log, str(tool.python))


def job(family: str, width: int, steps: int, **more) -> dict:
    """What contestants/trains_shared.py calls a Job."""
    return {"family": family, "d_model": D_MODEL, "d_sae": width, "k": K, "batch": BATCH, "steps": steps, **more}


def speeds(family: str, width: int, settings: dict, options, log: Path) -> list[dict]:
    """The lines of one family and width."""
    steps = options.steps or TIMED_STEPS[width]
    needed = WARM_STEPS + steps * (options.repeats + 1)
    case = {"part": "speed", "steps": steps, "job": job(family, width, max(settings["training"] // BATCH, needed))}

    def all_of_them():
        for name, precision in FLOORS.items():
            yield Contestant(name, "trains_floor.py", {"precision": precision}, log)
        for name, tool in tools(family, options).items():
            yield contestant(name, tool, settings, log)
            if options.helped and tool.peer:
                yield contestant(f"{name}, oneDNN", tool, settings | {"precision": "medium"}, log)

    with started(all_of_them()) as contestants:
        figures = interleaved(contestants, case, options.repeats)
    about = {"family": family, "width": width}
    found = [about | {"contestant": name} | speed_of(runs) for name, runs in figures.items()]
    rates = {row["contestant"]: row["tokens_per_second"] for row in found}
    peers = [rate for name, rate in rates.items() if name not in FLOORS and name != "lensae"]
    for row in found:
        row["to_fastest_peer"] = row["tokens_per_second"] / max(peers) if peers else None
        row["to_floor"] = row["tokens_per_second"] / max(rates[name] for name in FLOORS)
    return found


def speed_of(runs: list[dict]) -> dict:
    """The median of one contestant's turns."""
    rates = [run["tokens"] / run["seconds"] for run in runs]
    seconds = [run["seconds"] for run in runs]
    return {
        "tokens_per_second": statistics.median(rates),
        "peak_memory": runs[-1]["peak_memory"],
        "others": max(run.get("others") or 0.0 for run in runs),
        "seconds": seconds,
    }


def qualities(name: str, tool: Tool, family: str, settings: dict, options, log: Path) -> list[dict]:
    """Every run of one tool in one family, the one to show marked `best`."""
    with started([contestant(name, tool, settings, log)]) as [one]:
        runs = search(one, tool, family, settings["training"] // BATCH, options.tries)
    best = choose(runs)
    factors = [run["lr_factor"] for run in runs]
    for run in runs:
        run["best"], run["off_k"] = run is best, not near(run)
        run["at_edge"] = run["lr_factor"] in (min(factors), max(factors))
    return [{"family": family, "contestant": name, **run} for run in runs]


def near(run: dict) -> bool:
    """Whether its L0 is close enough to k."""
    return abs(run["trained"]["l0"] / K - 1) <= TOLERANCE


def choose(runs: list[dict]) -> dict:
    """The best explained variance among those near k, or the run that is closest to it."""
    comparable = [run for run in runs if near(run)]
    return max(comparable, key=explained) if comparable else min(runs, key=distance)


def search(one: Contestant, tool: Tool, family: str, steps: int, tries: int) -> list[dict]:
    """The runs of one contestant: every learning rate, and higher ones while the highest is the best."""
    runs: list[dict] = []
    factors = list(tool.lr_factors)
    weight = None
    for factor in factors:
        found = weighed(one, family, steps, factor, weight, tries if family in tool.weighed else 1)
        weight = min(found, key=distance)["penalty"]
        runs += found
        if factor == factors[-1] and factor < HIGHEST_FACTOR and choose(runs)["lr_factor"] == factor:
            factors.append(3 * factor)
    return runs


def weighed(one: Contestant, family: str, steps: int, factor: float, weight: float | None, tries: int) -> list[dict]:
    """The runs of one learning rate: with several tries, at weights of the sparsity that move towards L0 = k, from
    `weight` on (None: the documented one)."""
    runs: list[dict] = []
    for _ in range(tries):
        case = {"part": "quality", "job": job(family, QUALITY_WIDTH, steps, lr_factor=factor, penalty=weight)}
        runs.append({"lr_factor": factor, **one.turn(case)})
        if near(runs[-1]) or runs[-1]["penalty"] is None:
            break
        weight = next_penalty([(run["penalty"], run["trained"]["l0"]) for run in runs])
    return runs


def next_penalty(tried: list[tuple[float, float]]) -> float:
    """The weight that should give L0 = k: on the line through the last two points in logarithms, at most a factor of
    10 away; a single point is taken as L0 ~ 1 / weight."""
    points = [(math.log(penalty), math.log(max(l0, 0.1) / K)) for penalty, l0 in tried]
    slope = -1.0
    if len(points) > 1 and points[-1][0] != points[-2][0]:
        slope = (points[-1][1] - points[-2][1]) / (points[-1][0] - points[-2][0])
    move = -points[-1][1] / min(slope, -0.2)
    return math.exp(points[-1][0] + max(-math.log(10), min(math.log(10), move)))


def distance(run: dict) -> float:
    """How far its L0 is from k, in logarithms."""
    return abs(math.log(max(run["trained"]["l0"], 0.1) / K))


if __name__ == "__main__":
    main()
