"""The report of an evaluation, and the same as plain values.

Shapes: F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lensae.sae.metrics.bootstrap import LEVEL, RESAMPLES
from lensae.sae.metrics.histogram import EDGES

SEED = 0
# Bins of the histograms of density (steps of 10^(1/12)) and of cosines.
DENSITY_EDGES = 10.0 ** np.linspace(-7, 0, 85)
COSINE_EDGES = np.linspace(-1, 1, 101)


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """Losses in nats per token with the stream as it is, replaced by the SAE's reconstruction, and set to zero.

    Special tokens are never replaced, and are not counted as targets. KL is KL(clean || replaced) of the next-token
    distributions. ce_recovered is (zero - sae) / (zero - clean), kl_recovered 1 - kl_sae / kl_zero: 1 when nothing is
    lost, 0 when it is as bad as zeros.
    """

    tokens: int
    ce_clean: float
    ce_sae: float
    ce_zero: float
    ce_recovered: float
    kl_sae: float
    kl_zero: float
    kl_recovered: float


@dataclass(frozen=True, kw_only=True)
class Column:
    """The SAE or one of its baselines: figures (see lensae.sae.metrics.reconstruction.Reconstruction), losses, and 95 %
    intervals of explained_variance_typical, explained_variance, l0, ce_recovered and kl_recovered, None where they say
    nothing."""

    name: str
    title: str
    figures: dict
    loss: LossReport
    intervals: dict[str, tuple[float, float] | None]


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Everything `evaluate` measured; `columns` are the SAE, then pca, random and raw (the stream as it is).

    Of a transcoder, what is measured are the rows of the set `target_name`, and `columns` are the transcoder, then
    linear_rank_l0, linear, random and raw.

    `prompts` counts what the intervals resample: documents that share a prompt are kept together, as they are when
    documents are held out. Rows of a norm above `massive_norm` are massive. `nearest_cosine` is, for each row of a
    decoder, its largest cosine with any other.
    """

    set_name: str
    sae_name: str
    d_sae: int
    documents: int
    prompts: int
    heldout: str
    baseline_rows: int
    columns: tuple[Column, ...]
    splice_tokens: int
    splice_difference: float
    seconds: float
    massive_norm: float
    density: np.ndarray = field(repr=False)
    activation_counts: np.ndarray = field(repr=False)
    zeros: int
    nearest_cosine: dict[str, np.ndarray] = field(repr=False)
    folder: Path | None = None
    target_name: str = ""

    @property
    def figures(self) -> dict:
        """The SAE's own reconstruction figures."""
        return self.columns[0].figures

    @property
    def loss(self) -> LossReport:
        """The SAE's own losses."""
        return self.columns[0].loss


def summary(report: EvaluationReport) -> dict:
    """The report as plain values, for JSON; what is not a number is None."""
    sae, *baselines = report.columns
    return {
        "set": report.set_name,
        **({"target": report.target_name} if report.target_name else {}),
        "sae": report.sae_name,
        "heldout_documents": report.documents,
        "heldout_prompts": report.prompts,
        "heldout": report.heldout,
        "massive_rows": {"count": sae.figures["massive_rows"], "norm_above": report.massive_norm},
        "reconstruction": _finite(sae.figures),
        "loss": _finite(vars(sae.loss)),
        "intervals": _finite(sae.intervals),
        "baselines": {
            column.name: {
                "reconstruction": _finite(column.figures),
                "loss": _finite({"ce": column.loss.ce_sae, "ce_recovered": column.loss.ce_recovered})
                | _finite({"kl": column.loss.kl_sae, "kl_recovered": column.loss.kl_recovered}),
                "intervals": _finite(column.intervals),
            }
            for column in baselines
        },
        "baseline_training_rows": report.baseline_rows,
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "resampled": "held-out prompts"},
        "splice_check": {"tokens": report.splice_tokens, "largest_difference": report.splice_difference},
        "histograms": _histograms(report),
        "seconds": round(report.seconds, 3),
    }


def _finite(values: dict) -> dict:
    return {name: None if _not_a_number(value) else value for name, value in values.items()}


def _not_a_number(value: object) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return any(isinstance(number, float) and not math.isfinite(number) for number in numbers)


def _histograms(report: EvaluationReport) -> dict:
    """Counts between edges: features by density, activations by size, decoder rows by their largest cosine."""
    density_F = report.density.astype(np.float64)
    histograms = {
        "density": _histogram(np.histogram(density_F[density_F > 0], DENSITY_EDGES)[0], DENSITY_EDGES),
        "activations": _histogram(report.activation_counts, EDGES) | {"zeros": report.zeros},
    }
    for name, cosine_F in report.nearest_cosine.items():
        counts = np.histogram(cosine_F, COSINE_EDGES)[0]
        histograms[f"nearest_cosine_{name}"] = _histogram(counts, COSINE_EDGES) | {"median": float(np.median(cosine_F))}
    return histograms


def _histogram(counts: np.ndarray, edges: np.ndarray) -> dict:
    """The part of a histogram between its first and its last filled bin."""
    filled = np.flatnonzero(counts)
    first, last = (filled[0], filled[-1] + 1) if len(filled) else (0, 0)
    return {"edges": edges[first : last + 1].tolist(), "counts": counts[first:last].tolist()}
