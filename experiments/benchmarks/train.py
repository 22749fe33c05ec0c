"""The speed of training beside SAELens, dictionary_learning and sparsify, on the same real activations.
`make bench-train`.

The rows are those of smollm2-135m after block 15, float32, shuffled once. Every contestant is a process of its own, is
given the raw rows in the same order, and applies the normalisation, the optimizer, the schedules and the auxiliary loss
that its documentation recommends (quoted in its script).

  steps/s     rows per second of full training steps, medians over interleaved repeats, beside the encoder's product
              alone ("floor": through oneDNN, and at PyTorch's default). Auxiliary losses cost nothing while no feature
              counts as dead: the peers' windows are longer than this run, lensae's is not.
  whole/s     training rows per second of one whole pass, from the start of the process to its end. Of lensae it is the
              command `train` with its imports, held-out measurements, files and figures, without the feature index; of
              the others imports, steps and saving: they have no evaluation on stored activations to be timed.
  held-out/s  rows per second of all figures that lensae measures on held-out rows at the end of a training.
  EV L0 dead  of the held-out rows after the timed steps, equally many for all, at the documented learning rates and
              amid their schedules: how good the SAEs become, each at its best learning rate, quality.py measures.
  others      how many cores other processes kept busy meanwhile, in the worst run: a line where that is not about 0 was
              disturbed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

import texts
from contestants.trains_report import Results, show_speed
from contestants.trains_rows import Rows, rows_of
from interleaved_runs import Contestant, interleaved, started
from train_tools import FAMILIES, TOOLS, job, tools_of, whole_seconds

HERE = Path(__file__).resolve().parent
WIDTHS = (4608, 18432)
K, BATCH = 32, 4096
TIMED_STEPS = {4608: 8, 18432: 3}
WARM_STEPS = 3
FLOORS = {"floor, oneDNN": "medium", "floor": "highest"}


def main() -> None:
    """Measure what is asked for, print the tables as they come, write results/train.json."""
    options = arguments()
    rows = rows_of(options.corpus, options.rows, BATCH)
    about = {"hook": texts.HOOK, "rows": options.rows, "training_rows": rows.training, "k": K, "batch": BATCH}
    results = Results(Path(options.results), about)
    with tempfile.TemporaryDirectory() as folder:
        for width, family in itertools.product(options.widths, options.families):
            lines = speeds(family, width, rows, options, Path(folder) / "log")
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
    parser.add_argument("--passes", type=int, default=1, help="whole passes of each tool, from start to end")
    texts.add_option(parser)
    parser.add_argument("--steps", type=int, help="timed steps a run, rather than 8 and 3")
    parser.add_argument("--helped", action="store_true", help="time the peers with oneDNN products as well")
    parser.add_argument("--results", default=str(HERE / "results" / "train.json"))
    return parser.parse_args()


def speeds(family: str, width: int, rows: Rows, options, log: Path) -> list[dict]:
    """The lines of one family and width."""
    steps = options.steps or TIMED_STEPS[width]
    settings = {"rows": str(rows.path), "training": rows.training}
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
        after = {one.name: one.run(case | {"part": "reached"}) for one in contestants if one.name not in FLOORS}
    about = {"family": family, "width": width}
    lines = [
        about | {"contestant": name} | quality_of(after.get(name)) | speed_of(runs) for name, runs in figures.items()
    ]
    whole = whole_rates(family, width, rows, options, log)
    rates = {line["contestant"]: line["tokens_per_second"] for line in lines}
    peers = [rate for name, rate in rates.items() if name not in FLOORS and name != "lensae"]
    for line in lines:
        line["to_fastest_peer"] = line["tokens_per_second"] / max(peers) if peers else None
        line["to_floor"] = line["tokens_per_second"] / max(rates[name] for name in FLOORS)
        if line["contestant"] in whole:
            line["whole_rows_per_second"] = whole[line["contestant"]]
    return lines


def whole_rates(family: str, width: int, rows: Rows, options, log: Path) -> dict[str, float]:
    """Training rows per second of each tool's whole pass, from the start of its process to its end: the median."""
    tools = tools_of(family, options.tools)
    case = job(family, width, K, BATCH, rows.training // BATCH)
    runs = [
        (name, whole_seconds(name, tool, rows, case, log))
        for _ in range(options.passes)
        for name, tool in tools.items()
    ]
    rates = {name: [run["rows"] / run["seconds"] for other, run in runs if other == name] for name in tools}
    return {name: statistics.median(values) for name, values in rates.items() if values}


def quality_of(reached: dict | None) -> dict:
    """Where one contestant's training had got to after its runs (nothing for a floor), and how fast it measures."""
    names = ("tokens_seen", "explained_variance", "l0", "dead", "heldout_rows_per_second")
    return {name: reached[name] for name in names if name in reached} if reached else {}


def speed_of(runs: list[dict]) -> dict:
    """The median of one contestant's runs."""
    return {
        "tokens_per_second": statistics.median(run["tokens"] / run["seconds"] for run in runs),
        "peak_memory": runs[-1]["peak_memory"],
        "others": max(run.get("others") or 0.0 for run in runs),
        "seconds": [run["seconds"] for run in runs],
    }


if __name__ == "__main__":
    main()
