"""What building an index came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from lensae.core.program import command

if TYPE_CHECKING:
    from lensae.stages.index import IndexReport


def show(console: Console, report: IndexReport, next_step: bool = True) -> None:
    """A line or two, and the next command."""
    console.print(
        f"[bold]{report.alive:,}[/] of {report.features:,} features fire, {report.postings:,} postings over "
        f"{report.rows:,} tokens in {report.segments} segments ({report.encoded:,} encoded, {report.seconds:.1f} s)"
    )
    if next_step:
        console.print(f"[dim]next:[/] {command('features list --sort label')}")
