"""A sweep: its table and its plot."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from lensae.stages.sweep import SweepReport, summary
from lensae.views.console import print_json
from lensae.views.figures import _axes, _save

RIGHT = ("features", "L0", "EV", "dead")
COLOURS = ("#3a6ea5", "#7a9e3f", "#a0568c", "#c2a13a", "#4a9b98", "#8c6d52", "#6b6b6b")


def show(console: Console, report: SweepReport) -> None:
    """A line per SAE by rising L0, the winner and its rule."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("SAE", *RIGHT, ""):
        table.add_column(column, justify="right" if column in RIGHT else "left", no_wrap=True)
    for point in report.points:
        mark = "winner" if point == report.winner else "front" if point.front else ""
        table.add_row(
            point.name,
            f"{point.d_sae:,}",
            f"{point.l0:.1f}",
            f"{point.explained_variance:.4f}",
            f"{point.dead_share:.1%}",
            f"[bold green]{mark}[/]" if mark == "winner" else mark,
        )
    console.print(table)
    for name, why in report.failed.items():
        console.print(f"[red]failed[/] {name}: {why}")
    if report.winner:
        console.print(f"[bold]{report.winner.name}[/] is the winner: {report.rule}", soft_wrap=True)
        if report.reused:
            console.print(f"[dim]{report.reused} of them had been trained before on these rows[/]")
        console.print(f"[dim]plot[/] {plot(report)}", soft_wrap=True)
        console.print(f"[dim]next:[/] python main.py evaluate --sae {report.winner.name}", soft_wrap=True)


def plot(report: SweepReport) -> Path:
    """Explained variance against L0 (log scale), the Pareto front as a line, the winner ringed."""
    figure, axes = _axes(
        f"{len(report.points)} SAEs on {report.set_name}", "L0 on held-out rows", "explained variance there"
    )
    for arch, colour in zip(sorted({point.arch for point in report.points}), COLOURS, strict=False):
        points = [point for point in report.points if point.arch == arch]
        x, y = [point.l0 for point in points], [point.explained_variance for point in points]
        axes.scatter(x, y, color=colour, s=28, label=arch, zorder=3)
    front = [point for point in report.points if point.front]
    front_x, front_y = [point.l0 for point in front], [point.explained_variance for point in front]
    axes.plot(front_x, front_y, color="#e07a3f", linewidth=1.2, zorder=2, label="Pareto front")
    at = (report.winner.l0, report.winner.explained_variance)
    axes.scatter(*at, s=150, facecolors="none", edgecolors="#b4531c", linewidths=1.6, zorder=4)
    axes.annotate(report.winner.name, at, (8, -12), textcoords="offset points", fontsize=8, color="#b4531c")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, report.folder / "pareto.png")


def as_json(report: SweepReport) -> None:
    """sweep.json, with the plot's place."""
    print_json({**summary(report), "figure": plot(report) if report.winner else None})
