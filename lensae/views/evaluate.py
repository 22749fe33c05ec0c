"""An evaluation as a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from lensae.core.recipe import MASSIVE
from lensae.stages.evaluate.report import LEVEL, RESAMPLES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lensae.stages.evaluate.report import EvaluationReport


# Label, name and form of each figure. Ratios of sums over rows leave out massive rows; where there are some, those that
# include them follow.
FIGURES = [
    ("L0", "l0", "{:.1f}"),
    ("explained variance", "explained_variance_typical", "{:.4f}"),
    ("  massive rows included", "explained_variance", "{:.4f}"),
    ("  mean over dimensions", "explained_variance_per_dim_typical", "{:.4f}"),
    ("  mean over tokens", "explained_variance_per_token", "{:.4f}"),
    ("cosine", "cosine", "{:.4f}"),
    ("shrinkage", "shrinkage", "{:.4f}"),
    ("relative bias", "relative_bias_typical", "{:.4f}"),
    ("  massive rows included", "relative_bias", "{:.4f}"),
    ("dead features", "dead_share", "{:.2%}"),
    ("dense features (> 10 %)", "dense_share", "{:.2%}"),
]
MASSIVE_INCLUDED = {"explained_variance", "relative_bias"}
LOSSES = [
    ("CE loss, spliced", "ce_sae"),
    ("CE loss recovered", "ce_recovered"),
    ("KL, spliced", "kl_sae"),
    ("KL recovered", "kl_recovered"),
]


def show(console: Console, report: EvaluationReport, pictures: Sequence[Path]) -> None:
    """The SAE beside its baselines, what the numbers are of, then where the pictures are."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", style="dim", no_wrap=True)
    for column in report.columns:
        table.add_column(column.title, justify="right", style="bold" if column.name == "sae" else "")
    for label, name, form in FIGURES:
        if name in MASSIVE_INCLUDED and not report.figures["massive_rows"]:
            continue
        table.add_row(label, *(_cell(c.figures[name], form, c.intervals.get(name)) for c in report.columns))
    medians = {name: float(np.median(cosine)) for name, cosine in report.nearest_cosine.items()}
    table.add_row("nearest decoder row, cos", *(_cell(medians.get(c.name), "{:.4f}") for c in report.columns))
    for label, name in LOSSES:
        cells = (_cell(getattr(c.loss, name), "{:.4f}", c.intervals.get(name)) for c in report.columns)
        table.add_row(label, *cells)
    console.print(table)
    _notes(console, report)
    for path in pictures:
        console.print(f"[dim]figure[/] {path}", soft_wrap=True)


def _cell(value: float | None, form: str, interval: tuple[float, float] | None = None) -> str:
    """A figure, and its interval on a line below."""
    if value is None or not math.isfinite(value):
        return "[dim]-[/]"
    text = form.format(value)
    if interval is None or interval[0] == interval[1] or not all(map(math.isfinite, interval)):
        return text
    short = form.replace("4f", "3f")
    return f"{text}\n[not bold dim]{short.format(interval[0])} to {short.format(interval[1])}[/]"


def _baselines(report: EvaluationReport) -> str:
    if not report.target_name:
        return "PCA with as many components as the SAE's L0, the random SAE at its L0; both fitted to"
    return (
        "the best linear map of a rank as high as the transcoder's L0, and the best of all; random: a random encoder "
        "at its L0 and the decoder fitted feature by feature; all fitted to"
    )


def _notes(console: Console, report: EvaluationReport) -> None:
    loss, figures = report.loss, report.figures
    lines = [
        f"{report.d_sae:,} features on {figures['rows']:,} tokens of {report.documents:,} documents ({report.heldout})",
        f"losses in nats on {loss.tokens:,} of them: CE {loss.ce_clean:.4f} clean, {loss.ce_zero:.4f} with the stream "
        f"set to zero; KL {loss.kl_zero:.4f} with zero",
        f"below a figure: {LEVEL:.0%} interval from {RESAMPLES:,} bootstrap resamples of the {report.prompts:,} "
        "held-out prompts",
    ]
    if figures["massive_rows"]:
        lines.insert(
            1,
            f"explained variance and relative bias leave out {figures['massive_rows']:,} massive rows, of a norm above "
            f"{report.massive_norm:,.1f}: {MASSIVE:g} times the mean",
        )
    if report.target_name:
        lines.insert(0, f"the rows of {report.target_name} predicted from those of {report.set_name}")
    if report.baseline_rows:
        lines.append(f"{_baselines(report)} {report.baseline_rows:,} training rows")
    if report.splice_difference:
        lines.append(
            f"[yellow]replacing the stream by itself changed log-probabilities by up to {report.splice_difference:.2g}"
            f" on {report.splice_tokens:,} tokens: take smaller differences for noise[/]"
        )
    else:
        lines.append(f"replacing the stream by itself changed nothing (checked on {report.splice_tokens:,} tokens)")
    if report.folder is None:
        lines.append("[yellow]nothing was written: the SAE's folder cannot be written to[/]")
    for line in lines:
        console.print(line, style="dim")
