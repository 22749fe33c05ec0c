"""What the training benchmark shows and keeps."""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lensae.durable import write_json


class Results:
    """The file of results, written as they come: the whole takes more than an hour.

    What it holds already of other parts, families, widths and contestants stays, if it is of the same rows.
    """

    def __init__(self, path: Path, about: dict):
        facts = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        self.path, about = path, facts | about
        found = json.loads(path.read_text()) if path.is_file() else {}
        self.found = found if found.get("about") == about else {"about": about}

    def note(self, part: str, rows: list[dict]) -> None:
        """Take lines in, in place of those of the same name."""
        new = {self._name(row) for row in rows}
        self.found[part] = [row for row in self.found.get(part, []) if self._name(row) not in new] + rows
        write_json(self.path, self.found)

    @staticmethod
    def _name(row: dict) -> tuple:
        return row["family"], row.get("width"), row["contestant"]


def explained(run: dict) -> float:
    """Explained variance; the worst of all when it is no number."""
    value = run["trained"]["explained_variance"]
    return -math.inf if value is None else value


def show_speed(rows: list[dict]) -> None:
    """The table of the first part."""
    table = table_of("full training steps", "width family contestant tokens/s peer floor memory others")
    for row in rows:
        peer = f"{row['to_fastest_peer']:.2f}x" if row["to_fastest_peer"] else ""
        memory = f"{row['peak_memory'] / 2**20:,.0f} MiB"
        rate, floor = f"{row['tokens_per_second']:,.0f}", f"{row['to_floor']:.2f}x"
        table.add_row(
            f"{row['width']:,}", row["family"], row["contestant"], rate, peer, floor, memory, f"{row['others']:.2f}"
        )
    Console(width=120).print(table)


def show_quality(rows: list[dict]) -> None:
    """The table of the second part: the best run of each tool."""
    table = table_of("one pass, held-out rows", "family contestant explained typical L0 dead lr weight tokens/s saved")
    for row in (row for row in rows if row["best"]):
        found, saved = row["trained"], row.get("saved")
        lr = f"{row['lr']:.1e} (x{row['lr_factor']:.2g}{', edge' if row['at_edge'] else ''})"
        table.add_row(
            row["family"],
            row["contestant"],
            f"{explained(row):.4f}",
            f"{found['typical']:.4f}" if found["typical"] is not None else "",
            f"{found['l0']:.1f}{' off k' if row['off_k'] else ''}",
            f"{found['dead']:.1%}",
            lr,
            "" if row["penalty"] is None else f"{row['penalty']:.2g}",
            f"{row['tokens'] / row['seconds']:,.0f}",
            f"{saved['explained_variance']:.4f} at L0 {saved['l0']:.1f}" if saved else "",
        )
    Console(width=140).print(table)


def table_of(title: str, columns: str) -> Table:
    """An empty table."""
    table = Table(title=title, box=None)
    for name in columns.split():
        table.add_column(name, justify="left" if name in ("family", "contestant") else "right")
    return table
