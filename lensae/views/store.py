"""Sets and SAEs on disk."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lensae.core.program import command


def set_list(console: Console, rows: list[dict]) -> None:
    """A line per set, and below it one per SAE."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("set", "rows", "documents", "width", "dtype", "MiB", "finished"):
        side = "right" if column in ("rows", "documents", "width", "MiB") else "left"
        table.add_column(column, justify=side, no_wrap=column != "set", overflow="fold")
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
    """How far the trainings are, and how to go on with those that nobody is at."""
    for sae in saes:
        far = (
            f"step {sae['step']:,} of {sae['steps']:,}, {sae['tokens']:,} tokens"
            if sae["steps"]
            else "no checkpoint yet"
        )
        state = "is in training" if sae["running"] else f"is unfinished; resume with: {sae['command']}"
        console.print(Text.assemble((f"SAE {sae['name']} ", "yellow"), (f"({far}) {state}", "dim")), soft_wrap=True)


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


def faults(console: Console, found: list, shards: int) -> None:
    """The outcome of a check."""
    if not found:
        console.print(f"[green]all {shards} shards are whole[/]")
        return
    for fault in found:
        console.print(Text.assemble((f"{fault.shard} ", "bold red"), f"{fault.where}: {fault.what}"))


def exported(console: Console, report: dict) -> None:
    """What an export came to, and how it is opened."""
    size = f"{report['rows']:,} rows, {report['documents']:,} documents, {report['bytes'] / 2**20:,.1f} MiB"
    console.print(Text.assemble(report["path"], (f"  {report['format']}, {size}", "dim")), soft_wrap=True)
    _opened_by(console, report)


def viewed(console: Console, report: dict) -> None:
    """Where a set's view is, and how it is opened."""
    console.print(Text(report["path"]), soft_wrap=True)
    _opened_by(console, report)


def _opened_by(console: Console, report: dict) -> None:
    console.print(Text(report["open"], style="dim"), soft_wrap=True)


def going(console: Console, found: dict) -> None:
    """What goes when a set is removed."""
    rows = f"{found['rows']:,} rows, " if found["rows"] is not None else ""
    saes = "SAEs " + ", ".join(found["saes"]) if found["saes"] else "no SAE"
    size = f"{found['state']}: {rows}{found['bytes'] / 2**20:,.1f} MiB, {saes}"
    console.print(Text.assemble(found["path"], (f"  {size}", "yellow")), soft_wrap=True)
