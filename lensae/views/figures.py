"""PNG figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lensae.stages.evaluate import EDGES


def _axes(title: str, x: str, y: str):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=140)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path: Path) -> Path:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
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
        axes.hist(alive, bins=np.logspace(low, 0, int(-low * 12) + 1), color="#3a6ea5")
        axes.set_xscale("log")
    return _save(figure, path)


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
    return _save(figure, path)


def of_evaluation(report) -> list[Path]:
    """The pictures of an evaluation, beside its SAE."""
    folder = report.folder / "figures"
    return [
        density(report.density, folder / "density.png"),
        activations(report.activation_counts, report.zeros, folder / "activations.png"),
    ]
