"""The quality of SAEs beside those of SAELens, dictionary_learning and sparsify. `make bench-quality`.

experiments/quality.toml says of what. One pass over the training rows, the same tokens for all; whatever a tool's
documentation recommends is as its script quotes it, but for the learning rate: the documented one times 3 and 10 (1
and 3 where it is high), then times more or less by threes for as long as the highest or the lowest is the best. Where
sparsity has a weight and no k, the weight is searched for L0 = k as well (within a fifth, or as close as it came: "off
k"). What is best for the first seed is used for the others.

What each tool keeps for use is then measured by one and the same code, on documents that were held out of all
trainings: explained variance, L0, features that never fire, and how much of the model's loss is recovered when the SAE
stands in for the stream. Figures are means over seeds; intervals are 95 % percentile bootstraps over seeds and
documents, and those of differences compare both tools on the same documents.
"""

from __future__ import annotations

import argparse
import tempfile
import tomllib
from pathlib import Path

import texts
from contestants.trains_judged import judge
from contestants.trains_report import Results, quality_lines, write_quality
from contestants.trains_rows import Rows, rows_of
from interleaved_runs import started
from train_tools import Search, Tool, job, quality_run, tools_of

EXPERIMENTS = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train, measure, print the table, and write it beside its figures."""
    options = arguments()
    wanted = tomllib.loads(Path(options.recipe).read_text(encoding="utf-8"))["quality"]
    rows = rows_of(options.corpus, wanted["rows"], wanted["batch"])
    results = Results(Path(options.results).with_suffix(".json"), {"hook": texts.HOOK, "recipe": wanted})
    with tempfile.TemporaryDirectory() as folder:
        for family in options.families or wanted["families"]:
            runs: list[dict] = []
            for name, tool in tools_of(family, wanted["tools"]).items():
                runs += trained(name, tool, family, wanted, rows, Path(folder) / "log")
                results.note("runs", [{key: run[key] for key in run if key != "folder"} for run in runs])
            saes = {(run["contestant"], run["seed"]): Path(run["folder"]) for run in runs if run["kept"]}
            results.note("quality", quality_lines(family, wanted, runs, judge(saes, rows, wanted["tokens"])))
    write_quality(results, Path(options.results).with_suffix(".md"))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default=str(EXPERIMENTS / "quality.toml"))
    parser.add_argument("--families", nargs="+", help="some of the recipe's, the results of the others staying")
    texts.add_option(parser)
    parser.add_argument("--results", help="results/ and the recipe's name, unless given")
    options = parser.parse_args()
    options.results = options.results or str(EXPERIMENTS / "results" / Path(options.recipe).stem)
    return options


def trained(name: str, tool: Tool, family: str, wanted: dict, rows: Rows, log: Path) -> list[dict]:
    """Every run of one tool in one family: those of the search with the first seed, and the best one's with others."""
    settings = {"rows": str(rows.path), "training": rows.training}
    steps, own = rows.training // wanted["batch"], rows.path.parent / "saes" / f"{family}-{name}"
    about = {"family": family, "contestant": name}
    with started([tool.contestant(name, settings, log)]) as [one]:
        first = job(family, wanted["width"], wanted["k"], wanted["batch"], steps, seed=wanted["seeds"][0])
        found = Search(one, tool, first, wanted["tries"], own).runs()
        [best] = [run for run in found if run["best"]]
        runs = [about | run | {"seed": first["seed"], "kept": run is best} for run in found]
        for seed in wanted["seeds"][1:]:
            chosen = {"lr_factor": best["lr_factor"], "penalty": best["penalty"], "seed": seed}
            figures = quality_run(one, tool, first | chosen, own) | {"best": False, "off_k": best["off_k"]}
            runs.append(about | figures | chosen | {"kept": True})
    return runs


if __name__ == "__main__":
    main()
