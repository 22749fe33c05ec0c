"""The speed of training beside SAELens, dictionary_learning and sparsify, on the same real activations.
`make bench-train`.

The rows are those of smollm2-135m after block 15, float32, shuffled once. Every contestant is a process of its own, is
given the raw rows in the same order, and applies the normalisation, the optimizer, the schedules and the auxiliary loss
that its documentation recommends (quoted in its script).

Tokens/s of full training steps, medians over interleaved repeats, beside the encoder's product alone ("floor": through
oneDNN, and at PyTorch's default). Auxiliary losses cost nothing while no feature counts as dead: the peers' windows are
longer than this run, lensae's is not. "others" is how many cores other processes kept busy meanwhile, in the worst
turn: a line where that is not about 0 was disturbed. EV, L0 and dead are those of the held-out rows after the timed
steps, equally many for all, at the documented learning rates and amid their schedules: how good the SAEs become, each
at its best learning rate, is the matter of quality.py.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

from contestants.trains_report import Results, show_speed
from contestants.trains_rows import HOOK, rows_of
from train_tools import FAMILIES, TOOLS, job, tools_of
from turns import Contestant, interleaved, started

HERE = Path(__file__).resolve().parent
WIDTHS = (4608, 18432)
K, BATCH = 32, 4096
TIMED_STEPS = {4608: 8, 18432: 3}
WARM_STEPS = 3
FLOORS = {"floor, oneDNN": "medium", "floor": "highest"}


def main() -> None:
    """Measure what is asked for, print the tables as they come, write results/train.json."""
    options = arguments()
    rows = rows_of(options.rows, BATCH)
    settings = {"rows": str(rows.path), "training": rows.training}
    about = {"hook": HOOK, "rows": options.rows, "training_rows": rows.training, "k": K, "batch": BATCH}
    results = Results(Path(options.results), about)
    with tempfile.TemporaryDirectory() as folder:
        for width, family in itertools.product(options.widths, options.families):
            lines = speeds(family, width, settings, options, Path(folder) / "log")
            results.note("speed", lines)
            show_speed(lines)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--widths", nargs="+", type=int, choices=WIDTHS, default=WIDTHS)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, help="timed steps a turn, rather than 8 and 3")
    parser.add_argument("--helped", action="store_true", help="time the peers with oneDNN products as well")
    parser.add_argument("--results", default=str(HERE / "results" / "train.json"))
    return parser.parse_args()


def speeds(family: str, width: int, settings: dict, options, log: Path) -> list[dict]:
    """The lines of one family and width."""
    steps = options.steps or TIMED_STEPS[width]
    needed = WARM_STEPS + steps * (options.repeats + 1)
    length = max(settings["training"] // BATCH, needed)
    case = {"part": "speed", "steps": steps, "job": job(family, width, K, BATCH, length)}

    def all_of_them():
        for name, precision in FLOORS.items():
            yield Contestant(name, "trains_floor.py", {"precision": precision}, log)
        for name, tool in tools_of(family, options.tools).items():
            yield tool.contestant(name, settings, log)
            if options.helped and tool.peer:
                yield tool.contestant(f"{name}, oneDNN", settings | {"precision": "medium"}, log)

    with started(all_of_them()) as contestants:
        figures = interleaved(contestants, case, options.repeats)
        after = {one.name: one.turn(case | {"part": "reached"}) for one in contestants if one.name not in FLOORS}
    about = {"family": family, "width": width}
    found = [
        about | {"contestant": name} | quality_of(after.get(name)) | speed_of(runs) for name, runs in figures.items()
    ]
    rates = {row["contestant"]: row["tokens_per_second"] for row in found}
    peers = [rate for name, rate in rates.items() if name not in FLOORS and name != "lensae"]
    for row in found:
        row["to_fastest_peer"] = row["tokens_per_second"] / max(peers) if peers else None
        row["to_floor"] = row["tokens_per_second"] / max(rates[name] for name in FLOORS)
    return found


def quality_of(found: dict | None) -> dict:
    """Where one contestant's training had got to when its turns were over (nothing for a floor)."""
    names = ("tokens_seen", "explained_variance", "l0", "dead")
    return {name: found[name] for name in names} if found else {}


def speed_of(runs: list[dict]) -> dict:
    """The median of one contestant's turns."""
    return {
        "tokens_per_second": statistics.median(run["tokens"] / run["seconds"] for run in runs),
        "peak_memory": runs[-1]["peak_memory"],
        "others": max(run.get("others") or 0.0 for run in runs),
        "seconds": [run["seconds"] for run in runs],
    }


if __name__ == "__main__":
    main()
