"""Sets and SAEs on disk."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lensae.core.program import command
from lensae.stages.store import VerifyReport


def set_list(console: Console, rows: list[dict]) -> None:
    """A line for each set, and below it one for each SAE."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("set", "rows", "documents", "width", "dtype", "MiB", "finished"):
        side = "right" if column in ("rows", "documents", "width", "MiB") else "left"
        table.add_column(
            column, justify="right" if side == "right" else "left", no_wrap=column != "set", overflow="fold"
        )
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['rows']:,}",
            f"{row['documents']:,}",
            f"{row['width']:,}",
            row["dtype"],
            f"{row['bytes'] / 2**20:,.1f}",
            row["completed_at"][:16].replace("T", " ") or Text("unfinished", style="yellow"),
        )
        for name in row["saes"]:
            table.add_row(Text(f"  SAE {name}", style="cyan"))
        for sae in row["unfinished_saes"]:
            state = Text("in training" if sae["running"] else "unfinished", style="yellow")
            table.add_row(Text(f"  SAE {sae['name']}", style="yellow"), *[""] * 5, state)
    console.print(table)
    for row in rows:
        _unfinished(console, row["unfinished_saes"])


def _unfinished(console: Console, saes: list[dict]) -> None:
    """How far the trainings are, and how to resume those that are not running."""
    for sae in saes:
        reached = (
            f"step {sae['step']:,} of {sae['steps']:,}, {sae['tokens']:,} tokens"
            if sae["steps"]
            else "no checkpoint yet"
        )
        state = "is in training" if sae["running"] else f"is unfinished; resume with: {sae['command']}"
        console.print(Text.assemble((f"SAE {sae['name']} ", "yellow"), (f"({reached}) {state}", "dim")), soft_wrap=True)


def info(console: Console, details: dict) -> None:
    """Everything about one set."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for key, value in details.items():
        if not isinstance(value, list):
            table.add_row(key, Text(f"{value:,}" if isinstance(value, int) else str(value)))
    console.print(table)
    for number, entry in enumerate(details["passes"]):
        spec = entry["spec"]
        kind = f"generated, {spec['max_new_tokens']} new tokens" if spec["generate"] else "read"
        done = entry["completed_at"] or "unfinished"
        console.print(
            f"[dim]pass {number}[/] {spec['corpus']} ({kind}, seed {spec['seed']}): "
            f"{entry.get('documents', 0):,} documents, {entry.get('rows', 0):,} rows, {done[:19]}",
        )
        console.print(Text(f"       {entry['command']}", style="dim"))
    for name in details["saes"]:
        console.print(Text.assemble(("SAE ", "dim"), (name, "cyan")))
    _unfinished(console, details["unfinished_saes"])


def repaired(console: Console, done: list, shards: int) -> None:
    """The outcome of a repair."""
    if not done:
        console.print(f"[green]all {shards} shards are whole[/], there is nothing to repair")
    for shard in done:
        state = "the same bytes as at first" if shard.same else "[yellow]not the same bytes as at first[/]"
        console.print(f"{shard.shard} made again: {shard.documents:,} documents, {state}")
    if not all(shard.same for shard in done):
        console.print(f"another machine or version computes a little differently; index again: {command('index')}")


def verified(console: Console, report: VerifyReport) -> None:
    """The outcome of a verification."""
    if not report.faults:
        console.print(f"[green]{_checked(report)} are whole[/]")
    for fault in report.faults:
        text = Text.assemble((f"{fault.file} ", "bold red"), f"{fault.where}: {fault.what}")
        console.print(text, soft_wrap=True)


def _checked(report: VerifyReport) -> str:
    counts = ((report.shards, "shard"), (report.saes, "SAE"), (report.indexes, "index"))
    plural = {"index": "indexes"}
    named = [f"{n:,} {kind if n == 1 else plural.get(kind, kind + 's')}" for n, kind in counts if n]
    return "all of " + ", ".join(named)


def exported(console: Console, report: dict) -> None:
    """Size of an export, and how it is opened."""
    size = f"{report['rows']:,} rows, {report['documents']:,} documents, {report['bytes'] / 2**20:,.1f} MiB"
    console.print(Text.assemble(report["path"], (f"  {report['format']}, {size}", "dim")), soft_wrap=True)
    _opened_by(console, report)


def viewed(console: Console, report: dict) -> None:
    """Where a set's view is, and how it is opened."""
    console.print(Text(report["path"]), soft_wrap=True)
    _opened_by(console, report)


def _opened_by(console: Console, report: dict) -> None:
    console.print(Text(report["open"], style="dim"), soft_wrap=True)


def to_be_removed(console: Console, contents: dict) -> None:
    """What would be lost with a set."""
    rows = f"{contents['rows']:,} rows, " if contents["rows"] is not None else ""
    saes = "SAEs " + ", ".join(contents["saes"]) if contents["saes"] else "no SAE"
    size = f"{contents['state']}: {rows}{contents['bytes'] / 2**20:,.1f} MiB, {saes}"
    console.print(Text.assemble(contents["path"], (f"  {size}", "yellow")), soft_wrap=True)
