"""Steering: the measurements of every condition, and texts side by side."""

from __future__ import annotations

import math

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lensae.stages.steer.report import READABLE, SteerReport


def show(console: Console, report: SteerReport) -> None:
    """The table of conditions, then the first sample of each prompt under the unsteered model and the best run."""
    options = report.options
    unit = report.maximum
    where = "every token" if options.positions == "all" else "generated tokens"
    console.print(
        f"[bold]{options.operation} feature {options.feature}[/] at {report.hook} on {where}; its maximum over the set "
        f"is {unit:.1f}, the residual stream's norm there {report.residual_norm:.0f}"
    )
    console.print(_conditions(report))
    chosen = report.shown
    _verdict(console, report)
    table = Table(box=None, pad_edge=False, expand=True, header_style="bold")
    table.add_column("unsteered", ratio=1)
    table.add_column(f"scale {chosen.scale:g}", ratio=1)
    seen: set[str] = set()
    for prompt, plain, steered in zip(report.prompts, report.baseline.texts, chosen.texts, strict=True):
        if prompt not in seen:
            seen.add(prompt)
            table.add_row(_text(prompt, plain), _text(prompt, steered))
            table.add_row("", "")
    console.print(Panel(table, title="same prompts, same random numbers", border_style="dim"))


def _text(prompt: str, continuation: str) -> Text:
    return Text.assemble((prompt, "dim"), continuation)


def _conditions(report: SteerReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = ["condition", "scale", "value", "of norm", "read back", "read again", "KL", "perplexity"]
    if report.label:
        columns.append(f"P({report.label})")
    for column in columns:
        table.add_column(column, justify="left" if column == "condition" else "right")
    for run in (report.baseline, *report.steered, *report.controls):
        plain = run is report.baseline or not report.options.takes_value
        cells = [
            run.name,
            "" if plain else f"{run.scale:g}",
            "" if plain else f"{run.value:.1f}",
            "" if plain else f"{run.value / report.residual_norm:.0%}",
            f"{run.readback:.1f}",
            f"{run.rereading:.2f}",
            f"{run.kl:.3f}",
            f"{run.perplexity:.1f}",
        ]
        if report.label:
            cells.append(f"{run.label_probability:.2f}")
        table.add_row(*cells, style="bold" if run is report.best else "dim" if run in report.controls else "")
    return table


def _verdict(console: Console, report: SteerReport) -> None:
    console.print(
        "[dim]read back: the feature on the edited stream; read again: on the finished text, unedited; "
        "KL and perplexity: against the unsteered model[/]"
    )
    best, base = report.best, report.baseline
    if best is not None and report.label and not math.isnan(best.label_probability):
        console.print(
            f"scale {best.scale:g} moves the text toward [bold]{report.label}[/]: "
            f"{base.label_probability:.2f} to {best.label_probability:.2f}, perplexity {base.perplexity:.1f} to "
            f"{best.perplexity:.1f}"
        )
    elif best is None:
        console.print(
            f"[yellow]no scale here moves the text toward the feature with perplexity within {READABLE:g} times the "
            f"unsteered texts' ({base.perplexity:.1f})[/]: try others, such as --scale 0.5 --scale 1 --scale 2"
        )


def as_json(report: SteerReport) -> dict:
    """The report as plain values."""
    runs = [vars(run) for run in (report.baseline, *report.steered, *report.controls)]
    return {
        "set": report.set_name,
        "sae": report.sae_name,
        "hook": report.hook,
        "feature": report.options.feature,
        "operation": report.options.operation,
        "positions": report.options.positions,
        "seed": report.options.seed,
        "temperature": report.options.temperature,
        "max_new_tokens": report.options.max_new_tokens,
        "samples": report.options.samples,
        "control_feature": report.control_feature,
        "maximum": report.maximum,
        "residual_norm": report.residual_norm,
        "label": report.label,
        "prompts": list(report.prompts),
        "runs": runs,
        "best_scale": report.best.scale if report.best else None,
    }
