"""The report of a collection pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from lensae.core.program import command
from lensae.views.console import print_json

if TYPE_CHECKING:
    from lensae.stages.collect.options import CollectReport


def show(console: Console, report: CollectReport, next_step: bool = True) -> None:
    """A few lines, and the next command."""
    if report.already_complete:
        console.print(f"this pass is already complete: {report.rows:,} rows from {report.documents:,} documents")
    else:
        console.print(
            f"[bold]{report.rows:,}[/] tokens ({report.prompt_rows:,} prompt, {report.generated_rows:,} generated) "
            f"from {report.documents:,} documents of {report.model}"
        )
        if report.dropped:
            console.print(f"[yellow]{report.dropped:,} tokens left out[/]: their activations could not be stored")
        rate = f"{report.tokens_per_second:,.0f} tokens/s"
        disk = f"{report.bytes / 2**20:,.1f} MiB on disk ({report.bytes_per_token:,.0f} bytes a token)"
        memory = f"{report.peak_memory / 2**30:,.1f} GiB of memory at most"
        console.print(f"{rate} over {report.seconds:,.1f} s, {disk}, {memory}", soft_wrap=True)
    for path in report.paths:
        console.print(f"[dim]in[/] {path}", soft_wrap=True)
    if next_step:
        console.print(f"[dim]next:[/] {command('train')}")


def as_json(report: CollectReport) -> None:
    """The same as JSON."""
    more = {"tokens_per_second": report.tokens_per_second, "bytes_per_token": report.bytes_per_token}
    print_json({**vars(report), **more})
