"""PNG figures.

Shapes: F features.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lensae.core.paths import experiments_root, safe_name
from lensae.stages.evaluate.report import EDGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lensae.stages.evaluate.report import EvaluationReport
    from lensae.stages.survey import SurveyReport


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=140, layout="constrained")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def stacked(title: str, names: list[str], x: str) -> tuple[Figure, list[Axes]]:
    """A figure of axes one below the other, each with its name on the left, and `x` below the last."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 4 if len(names) == 1 else 2.6 * len(names)
    size: dict[str, Any] = {"figsize": (7, height), "dpi": 140, "layout": "constrained"}
    figure, rows = pyplot.subplots(len(names), 1, sharex=True, squeeze=False, **size)
    for axes, name in zip(rows[:, 0], names, strict=True):
        axes.set_ylabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    rows[0, 0].set_title(title, fontsize=11)
    rows[-1, 0].set_xlabel(x)
    return figure, list(rows[:, 0])


def save(figure: Figure, path: Path) -> Path:
    """Write the figure and let go of it."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    return path


def density(density_F: np.ndarray, path: Path) -> Path:
    """How often features fire: a histogram of log10 density; features that never fire are counted in the title."""
    alive = density_F[density_F > 0]
    dead = len(density_F) - len(alive)
    figure, axes = _axes(
        f"How often each of {len(density_F):,} features fires ({dead:,} never)",
        "share of held-out tokens on which the feature fires",
        "features",
    )
    if len(alive):
        low = np.floor(np.log10(alive.min()))
        axes.hist(alive, bins=np.logspace(low, 0, int(-low * 12) + 1).tolist(), color="#3a6ea5")
        axes.set_xscale("log")
        axes.minorticks_off()  # each is drawn like a major one, and takes as long
    return save(figure, path)


def activations(counts: np.ndarray, zeros: int, path: Path) -> Path:
    """How strong activations are where they are not zero; the share of zeros, the proof of sparsity, in the title."""
    total = int(counts.sum()) + zeros
    figure, axes = _axes(
        f"Feature activations: {zeros / max(total, 1):.2%} of {total:,} are exactly zero",
        "activation where it is not zero (log scale)",
        "count",
    )
    filled = np.flatnonzero(counts)
    if len(filled):
        first, last = filled[0], filled[-1]
        axes.bar(
            EDGES[first : last + 1],
            counts[first : last + 1],
            width=np.diff(EDGES[first : last + 2]),
            align="edge",
            color="#e07a3f",
            edgecolor="white",
            linewidth=0.2,
        )
        axes.set_xscale("log")
        axes.minorticks_off()
    return save(figure, path)


def nearest_cosines(cosines: dict[str, np.ndarray], path: Path) -> Path:
    """How alike decoder rows are: histogram of each row's largest cosine with another, beside random directions."""
    figure, axes = _axes(
        f"The decoder row most like each of {len(cosines['sae']):,}",
        "largest cosine with any other row",
        "features",
    )
    low = min(float(cosine_F.min()) for cosine_F in cosines.values())
    bins = np.linspace(np.floor(20 * low) / 20, 1, 81)
    axes.hist(cosines["sae"], bins=bins.tolist(), color="#3a6ea5", label="SAE")
    if "random" in cosines:
        axes.hist(cosines["random"], bins=bins.tolist(), histtype="step", color="#e07a3f", label="random directions")
        axes.legend(frameon=False)
    return save(figure, path)


def of_evaluation(report: EvaluationReport) -> list[Path]:
    """The pictures of an evaluation, beside its SAE; none for an SAE in a folder that cannot be written to."""
    if report.folder is None:
        return []
    folder = report.folder / "figures"
    return [
        density(report.density, folder / "density.png"),
        activations(report.activation_counts, report.zeros, folder / "activations.png"),
        nearest_cosines(report.nearest_cosine, folder / "decoder_cosine.png"),
    ]


def survey(report: SurveyReport) -> Path:
    """Norm, effective rank and share of the first principal component by block, the chosen block marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    blocks = [b.block for b in report.blocks]
    chosen, middle = blocks.index(report.choice.block), report.middle
    panels = [
        ("mean norm", [b.figures.norm_mean for b in report.blocks], "{:,.1f}"),
        (f"effective rank\nof {report.d_model:,}", [b.figures.effective_rank for b in report.blocks], "{:,.1f}"),
        ("share of variance in\nprincipal component 1", [b.figures.top1_share for b in report.blocks], "{:.1%}"),
    ]
    size: dict[str, Any] = {"figsize": (7, 6.5), "dpi": 140, "layout": "constrained"}
    figure, rows = pyplot.subplots(len(panels), 1, sharex=True, **size)
    for axes, (name, values, form) in zip(rows, panels, strict=True):
        axes.axvspan(blocks[middle[0]] - 0.5, blocks[middle[-1]] + 0.5, color="#eef1f5", zorder=0)
        axes.plot(blocks, values, color="#3a6ea5", marker="o", markersize=3.5, linewidth=1.4)
        axes.plot(blocks[chosen], values[chosen], color="#e07a3f", marker="o", markersize=8)
        axes.annotate(
            form.format(values[chosen]),
            (blocks[chosen], values[chosen]),
            (0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color="#b4531c",
        )
        axes.set_ylabel(name, fontsize=9)
        axes.set_ylim(0, 1.25 * max(values) or 1)
        axes.spines[["top", "right"]].set_visible(False)
    rows[0].set_title(
        f"{report.model}: residual stream after each block, {report.tokens:,} tokens of {report.corpus}", fontsize=10
    )
    rows[-1].set_xlabel(f"block (shaded: the middle third; orange: {report.choice.block}, the one chosen)")
    rows[-1].set_ylim(0, 1)
    rows[-1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    rows[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels()
    return save(figure, experiments_root() / "results" / f"survey-{safe_name(report.model)}.png")
