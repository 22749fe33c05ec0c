"""A survey of the residual stream as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lensae.core.program import command, join
from lensae.stages.survey import Block

if TYPE_CHECKING:
    from pathlib import Path

    from lensae.stages.survey import HookChoice, SurveyReport


COLUMNS = ("block", "norm", "mean |x|", "max |x|", "sum |x|", "top 1", "top 10", "kurtosis", "of float16", "eff. rank")
FEW = 2  # tokens per dimension below which the size of the sample limits the effective rank


def show(console: Console, report: SurveyReport, picture: Path, model: str | None, corpus: str) -> None:
    """One line per block, the middle third bright and the chosen one marked, then the choice, its reason, and the
    command that collects at it from `model` and `corpus`."""
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    table.add_column("")
    middle = report.middle
    for number, block in enumerate(report.blocks):
        chosen = block.block == report.choice.block
        style = "bold green" if chosen else "" if number in middle else "dim"
        table.add_row(*_cells(block), "chosen" if chosen else "", style=style)
    console.print(table)
    console.print(
        f"[dim]residual stream of {report.model} after each block, d_model {report.d_model:,}, on {report.tokens:,} "
        f"tokens of {report.documents:,} documents of {report.corpus}; without special tokens\n"
        "norm: mean Euclidean; top 1, top 10: share of the variance in the first principal components; kurtosis: "
        "excess, mean over dimensions; of float16: max |x| / 65504; eff. rank: of the covariance[/]"
    )
    if report.tokens < FEW * report.d_model:
        console.print(
            f"few tokens for {report.d_model:,} dimensions: effective ranks come out too low; "
            "give more text with --max-tokens or --corpus"
        )
    console.print(f"[bold]{report.choice.hook}[/]: {report.choice.why}")
    console.print(f"[dim]figure[/] {picture}", soft_wrap=True)
    console.print(Text.assemble(("next: ", "dim"), next_command(report.choice, model, corpus)), soft_wrap=True)


def _cells(block: Block) -> tuple[str, ...]:
    f = block.figures
    return (
        f"{block.block}",
        f"{f.norm_mean:,.1f}",
        f"{f.abs_mean:,.3f}",
        f"{f.abs_max:,.1f}",
        f"{f.abs_sum:,.0f}",
        f"{f.top1_share:.1%}",
        f"{f.top10_share:.1%}",
        f"{f.kurtosis:,.1f}",
        f"{f.float16_risk:.2%}",
        f"{f.effective_rank:,.1f}",
    )


def next_command(choice: HookChoice, model: str | None, corpus: str) -> str:
    """The command line that collects at the chosen hook."""
    words = ["collect", *([model] if model else []), "--hook", choice.hook]
    words += ["--corpus", corpus] if corpus != "themes" else []
    words += ["--dtype", choice.dtype] if choice.dtype != "float16" else []
    return command(join(words))
