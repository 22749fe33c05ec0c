"""What the training benchmark shows and keeps."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import numpy as np
import torch
from contestants.trains_judged import Judged, interval, mean
from rich.console import Console
from rich.table import Table

from lensae.core.durable import write_file, write_json

ABOUT_QUALITY = """Means over seeds with 95 % bootstrap intervals over seeds and held-out documents. Explained variance
is 1 - E|x - x_hat|^2 / Var(x); CE recovered is the share of the loss between a zeroed and a whole stream that the SAE
keeps. What is measured is what a tool keeps for use: of BatchTopK an SAE with a threshold. "In training" is the
explained variance of those rows by the rule of training, the largest of a batch.{more}
Made by `make bench-quality` from {name}.toml; every run is in {name}.json.
"""
ABOUT_RELU = """ One pass is 65 steps: at its
end the ReLU SAEs of the other tools hardly reconstruct the rows yet, so that line says how soon, not how well in the
end."""
COMPARED = ("explained_variance", "ce_recovered")


class Results:
    """The file of results, written as they come: the whole takes more than an hour.

    What it holds already of other parts, families, widths and contestants stays, if it is of the same rows.
    """

    def __init__(self, path: Path, about: dict):
        facts = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        self.path, self.about = path, facts | about
        found = json.loads(path.read_text()) if path.is_file() else {}
        self.found = found if found.get("about") == self.about else {"about": self.about}

    def note(self, part: str, rows: list[dict]) -> None:
        """Take lines in, in place of those of the same name."""
        new = {self._name(row) for row in rows}
        self.found[part] = [row for row in self.found.get(part, []) if self._name(row) not in new] + rows
        write_json(self.path, self.found)

    @staticmethod
    def _name(row: dict) -> tuple:
        return row["family"], row.get("width"), row["contestant"]


def show_speed(rows: list[dict]) -> None:
    """The table of the first part."""
    columns = "width family contestant steps/s peer floor whole/s held-out/s EV L0 dead memory others"
    table = table_of("rows/s in full training steps, and in a whole pass from start to end", columns)
    for row in rows:
        peer = f"{row['to_fastest_peer']:.2f}x" if row["to_fastest_peer"] else ""
        memory = f"{row['peak_memory'] / 2**20:,.0f} MiB"
        rate, floor = f"{row['tokens_per_second']:,.0f}", f"{row['to_floor']:.2f}x"
        came_to = ("", "", "")
        if row.get("explained_variance") is not None:
            came_to = (f"{row['explained_variance']:.3f}", f"{row['l0']:.1f}", f"{row['dead']:.1%}")
        named = (f"{row['width']:,}", row["family"], row["contestant"])
        whole, heldout = (number(row.get(f"{name}_rows_per_second")) for name in ("whole", "heldout"))
        table.add_row(*named, rate, peer, floor, whole, heldout, *came_to, memory, f"{row['others']:.2f}")
    Console(width=120).print(table)


def number(value: float | None) -> str:
    """A whole number, or nothing."""
    return "" if value is None else f"{value:,.0f}"


def quality_lines(family: str, wanted: dict, runs: list[dict], judged: dict[tuple, Judged]) -> list[dict]:
    """A line of the table for each tool, the best peers named where lensae is compared with them."""
    seeds = {name: [judged[name, seed] for seed in wanted["seeds"]] for name in dict.fromkeys(key[0] for key in judged)}
    found = []
    for name, several in seeds.items():
        last = next(run for run in runs if run["contestant"] == name and run["kept"])
        line = {"family": family, "contestant": name, "lr": last["lr"], "lr_factor": last["lr_factor"]}
        line |= {"penalty": last["penalty"], "off_k": last["off_k"]}
        line |= {figure: mean(several, figure) for figure in ("l0", "dead_share")}
        for figure in COMPARED:
            line |= {figure: mean(several, figure), f"{figure}_interval": interval(several, figure)}
        found.append(line)
    peers = [line for line in found if line["contestant"] != "lensae"]
    for line in found:
        if line["contestant"] == "lensae" and peers:
            for figure in COMPARED:
                best = max(peers, key=lambda peer, figure=figure: peer[figure])["contestant"]
                difference = mean(seeds["lensae"], figure) - mean(seeds[best], figure)
                span = interval(seeds["lensae"], figure, seeds[best])
                line[f"{figure}_to_best_peer"] = {"peer": best, "difference": difference, "interval": span}
    return found


def write_quality(results: Results, path: Path) -> None:
    """The table as Markdown, shown as well."""
    recipe = results.about["recipe"]
    family, tool = recipe["families"].index, recipe["tools"].index
    found = results.found.get("quality", [])
    lines = sorted(found, key=lambda line: (family(line["family"]), tool(line["contestant"])))
    shape = f"{recipe['width']:,} features, k = {recipe['k']}, one pass in batches of {recipe['batch']:,}"
    rows = f"{recipe['rows']:,} rows of smollm2-135m, {results.about['hook']}, a tenth of the documents held out"
    text = [f"# Quality on equal tokens\n\n{rows}; {shape}; seeds {', '.join(map(str, recipe['seeds']))}.\n"]
    more = ABOUT_RELU if any(line["family"] == "relu" for line in lines) else ""
    text.append(ABOUT_QUALITY.format(name=path.stem, more=more))
    text.append("| family | trained by | explained variance | in training | CE recovered | L0 | dead | learning rate |")
    text.append("|---|---|---|---|---|---|---|---|")
    for line in lines:
        kept, recovered = (spanned(line[figure], line[f"{figure}_interval"]) for figure in COMPARED)
        figures = f"{kept} | {in_training(results, line):.4f} | {recovered}"
        l0 = f"{line['l0']:.1f}{' (off k)' if line['off_k'] else ''}"
        lr = f"{line['lr']:.1e} (x {line['lr_factor']:.2g})"
        text.append(f"| {line['family']} | {line['contestant']} | {figures} | {l0} | {line['dead_share']:.2%} | {lr} |")
    text.append("\n| family | lensae less the best other tool in | difference | of |\n|---|---|---|---|")
    for line in lines:
        for figure in COMPARED:
            if one := line.get(f"{figure}_to_best_peer"):
                span = spanned(one["difference"], one["interval"], "+")
                text.append(f"| {line['family']} | {figure.replace('_', ' ')} | {span} | {one['peer']} |")
    write_file(path, ("\n".join(text) + "\n").encode())
    print(path.read_text(encoding="utf-8"))


def in_training(results: Results, line: dict) -> float:
    """Explained variance of the held-out rows by the rule of training, as the mean over seeds."""
    same = [run for run in results.found["runs"] if all(run[key] == line[key] for key in ("family", "contestant"))]
    return float(np.mean([run["trained"]["explained_variance"] for run in same if run["kept"]]))


def spanned(value: float, span: tuple[float, float], sign: str = "") -> str:
    """A figure with its interval."""
    return f"{value:{sign}.4f} ({span[0]:{sign}.4f} to {span[1]:{sign}.4f})"


def table_of(title: str, columns: str) -> Table:
    """An empty table."""
    table = Table(title=title, box=None)
    for name in columns.split():
        table.add_column(name, justify="left" if name in ("family", "contestant") else "right")
    return table
