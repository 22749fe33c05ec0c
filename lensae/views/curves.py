"""The course of a training and its result as PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lensae.views.figures import activations, density, save

if TYPE_CHECKING:
    from lensae.stages.train.run import TrainReport


PANELS = (
    ("loss", "loss in training"),
    ("explained_variance_typical", "explained variance\n(massive rows left out)"),
    ("l0", "L0"),
    ("dead_share", "share of features\nthat never fire"),
)


def of_training(report: TrainReport) -> list[Path]:
    """Draw the figures beside a trained SAE: its course, how often its features fire and how strongly."""
    folder, fit = report.sae.path / "figures", report.fit
    figures = [course(report), density(fit.heldout.density.numpy(), folder / "density.png")]
    if fit.activation_histogram is not None:
        counts, zeros = fit.activation_histogram
        figures.append(activations(counts, zeros, folder / "activations.png"))
    return figures


def course(report: TrainReport) -> Path:
    """Loss, explained variance, L0 and dead features over tokens, `figures/training.png` beside the SAE."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter, PercentFormatter

    history = report.fit.history
    tokens = [line.tokens for line in history]
    kept = max((line for line in history if line.best), key=lambda line: line.step)
    figure, rows = pyplot.subplots(len(PANELS), 1, sharex=True, figsize=(7, 7.5), dpi=140, layout="constrained")
    for axes, (name, label) in zip(rows, PANELS, strict=True):
        axes.plot(tokens, [getattr(line, name) for line in history], color="#3a6ea5", marker="o", markersize=3)
        axes.plot(kept.tokens, getattr(kept, name), color="#e07a3f", marker="o", markersize=7)
        axes.set_ylabel(label, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    rows[2].set_ylim(0, 1.2 * max(line.l0 for line in history) or 1)
    rows[3].set_ylim(-0.0005, max(0.01, 1.2 * max(line.dead_share for line in history)))
    rows[3].yaxis.set_major_formatter(PercentFormatter(1))
    rows[0].set_title(
        f"{report.sae.name}: explained variance and L0 on held-out rows; orange: the weights kept", fontsize=10
    )
    rows[-1].set_xlabel("training tokens")
    rows[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.align_ylabels()
    return save(figure, report.sae.path / "figures" / "training.png")
