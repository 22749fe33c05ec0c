"""A sweep: its table and its plot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lensae.core.program import command
from lensae.stages.train.pareto import Point
from lensae.stages.train.sweep import SweepReport
from lensae.views import index as index_view
from lensae.views.console import print_json
from lensae.views.figures import save, stacked

if TYPE_CHECKING:
    from matplotlib.axes import Axes


RIGHT = ("features", "L0", "EV", "CE kept", "dead")
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
            f"{point.explained_variance_typical:.4f}",
            "" if point.ce_recovered is None else f"{point.ce_recovered:.1%}",
            f"{point.dead_share:.1%}",
            f"[bold green]{mark}[/]" if mark == "winner" else mark,
        )
    console.print(table)
    for name, why in report.failed.items():
        console.print(f"[red]failed[/] {name}: {why}")
    if report.winner:
        console.print(f"[bold]{report.winner.name}[/] is the winner: {report.rule}", soft_wrap=True)
        if report.reused:
            console.print(f"[dim]{report.reused} of them had been trained on these rows before[/]")
        if report.no_losses:
            console.print(f"[dim]no CE: {report.no_losses}[/]")
        if report.index:
            index_view.show(console, report.index, next_step=False)
        for path in plots(report):
            console.print(f"[dim]plot[/] {path}", soft_wrap=True)
        console.print(f"[dim]next:[/] {command('evaluate')}, {command('features list --sort label')}", soft_wrap=True)


def plots(report: SweepReport) -> list[Path]:
    """Draw a sweep into its folder: pareto.png, and l1.png where weights of a sparsity penalty were compared."""
    figures = [_pareto(report, report.winner)] if report.winner else []
    penalised = [point for point in report.points if point.penalty is not None]
    if len({point.penalty for point in penalised}) > 1:
        figures.append(_penalty_plot(report, penalised))
    return figures


def _pareto(report: SweepReport, winner: Point) -> Path:
    """Explained variance against L0 (log scale), below it the loss recovered; the Pareto front as a line, the winner
    ringed."""
    about = f"{len(report.points)} SAEs on {report.set_name}"
    known = all(point.ce_recovered is not None for point in report.points)
    panels = {"explained_variance_typical": "explained variance"} | ({"ce_recovered": "CE recovered"} if known else {})
    figure, rows = stacked(about, list(panels.values()), "L0 on held-out rows")
    for axes, name in zip(rows, panels, strict=True):
        _scatter(axes, report, winner, name)
    rows[0].annotate(
        winner.name,
        (winner.l0, winner.explained_variance_typical),
        (8, -12),
        textcoords="offset points",
        fontsize=8,
        color="#b4531c",
    )
    rows[0].legend(frameon=False, fontsize=8)
    rows[-1].set_xscale("log", base=2)
    rows[-1].xaxis.set_major_formatter("{x:g}")
    return save(figure, report.folder / "pareto.png")


def _scatter(axes: Axes, report: SweepReport, winner: Point, name: str) -> None:
    for arch, colour in zip(sorted({point.arch for point in report.points}), COLOURS, strict=False):
        points = [point for point in report.points if point.arch == arch]
        axes.scatter(
            [p.l0 for p in points], [getattr(p, name) for p in points], color=colour, s=28, label=arch, zorder=3
        )
    front = [point for point in report.points if point.front]
    line: dict[str, Any] = {"color": "#e07a3f", "linewidth": 1.2, "zorder": 2, "label": "Pareto front"}
    axes.plot([p.l0 for p in front], [getattr(p, name) for p in front], **line)
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": "#b4531c", "linewidths": 1.6}
    axes.scatter(winner.l0, getattr(winner, name), s=150, zorder=4, **ring)


def _penalty_plot(report: SweepReport, points: list[Point]) -> Path:
    """Mean squared error against the weight of the sparsity penalty, a line for each family and width."""
    figure, [axes] = stacked(
        f"Sparsity penalties on {report.set_name}", ["mean squared error on held-out rows"], "weight of the penalty"
    )
    kinds = sorted({(point.arch, point.d_sae) for point in points})
    for kind, colour in zip(kinds, COLOURS, strict=False):
        line = sorted((p.penalty or 0.0, p.mse, p.l0) for p in points if (p.arch, p.d_sae) == kind)
        label = f"{kind[0]}, {kind[1]:,} features"
        weights, errors = [weight for weight, _, _ in line], [mse for _, mse, _ in line]
        axes.plot(weights, errors, "o-", color=colour, markersize=4, label=label)
        for weight, mse, l0 in line:
            axes.annotate(
                f"L0 {l0:.0f}", (weight, mse), (4, 5), textcoords="offset points", fontsize=7, color="#6b6b6b"
            )
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=8)
    return save(figure, report.folder / "l1.png")


def as_json(report: SweepReport) -> None:
    """Print sweep.json, with the paths of the plots and the winner's index."""
    index = asdict(report.index) if report.index else None
    print_json({**report.summary(), "index": index, "figures": plots(report) if report.winner else []})
