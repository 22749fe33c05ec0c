"""The statistics of a corpus."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lensae.core.records import CorpusStats


def show(console: Console, stats: CorpusStats) -> None:
    """Counts, labels and content words."""
    console.print(
        f"[bold]{stats.name}[/]: {stats.prompts:,} prompts, {stats.words:,} words "
        f"({stats.words_mean:.1f} a prompt, {stats.words_min} to {stats.words_max})"
    )
    if stats.tokens is not None:
        console.print(f"{stats.tokens:,} tokens ({stats.tokens_mean:.1f} a prompt, as the model reads it)")
    if stats.template != "{text}":
        console.print(Text.assemble(("template ", "dim"), stats.template))
    if stats.labels:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(justify="right")
        table.add_column()
        for label, count in stats.labels[:12]:
            table.add_row(f"{count:,}", label)
        console.print(table)
        if len(stats.labels) > 12:
            console.print(f"[dim]and {len(stats.labels) - 12} more labels[/]")
    words = ", ".join(f"{word} {count}" for word, count in stats.content_words)
    console.print(Text.assemble(("prompts by content word  ", "dim"), words))
