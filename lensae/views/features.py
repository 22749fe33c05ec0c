"""Features: their strongest activations in text, their figures, and lists of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lensae.core.records import ORIGINS, Example, FeatureStats, LabelScore

if TYPE_CHECKING:
    import numpy as np

    from lensae.stages.features import FeatureReport


HEAT = ("#ffe8a3", "#ffd166", "#f9a03f", "#f3722c", "#e63946")
LABEL_WIDTH = 12
BLOCKS = " ▁▂▃▄▅▆▇█"


def heat(strength: float) -> str:
    """A style for an activation as a share of the feature's maximum."""
    colour = HEAT[min(len(HEAT) - 1, max(0, int(strength * len(HEAT))))]
    return f"bold #1a1a1a on {colour}"


def one_line(text: str) -> str:
    """The text on one line, line breaks and tabs shown as symbols."""
    return text.replace("\r", "").replace("\n", "⏎").replace("\t", "→")


def snippet(example: Example, maximum: float, width: int) -> Text:
    """The text around the firing token in `width` columns: the token in «marks», coloured by strength, all lined up."""
    before_width = max(12, width * 6 // 10)
    before, token, after = example.snippet(before_width, width)
    stripped = token.lstrip(" ") or token
    before = one_line(before + token[: len(token) - len(stripped)])[-before_width:]
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(before.rjust(before_width))
    line.append(f"«{one_line(stripped)}»", style=heat(example.value / max(maximum, 1e-12)))
    line.append(one_line(after), style="dim")
    return line


def examples(console: Console, rows: list[Example] | tuple[Example, ...], maximum: float) -> None:
    """A table of examples, strongest first."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    labelled = any(e.label for e in rows)
    widths = {"value": 7, "doc": max(3, *(len(str(e.document)) for e in rows)), "from": 13}
    if labelled:
        widths["label"] = min(LABEL_WIDTH, max(5, *(len(e.label) for e in rows)))
    text_width = max(40, console.width - sum(widths.values()) - 2 * len(widths))
    for name, width in widths.items():
        table.add_column(name, justify="right" if name in ("value", "doc") else "left", no_wrap=True, width=width)
    table.add_column("text, the firing token «marked»", no_wrap=True, width=text_width)
    for e in rows:
        origin = ORIGINS[e.span.origin] + (f" ×{e.copies}" if e.copies > 1 else "")
        cells: list[str | Text] = [f"{e.value:.1f}", f"{e.document}", Text(origin, style="dim")]
        if labelled:
            cells.append(Text(e.label, style="dim", overflow="ellipsis"))
        table.add_row(*cells, snippet(e, maximum, text_width))
    console.print(table)


def headline(console: Console, stats: FeatureStats, rows: int) -> None:
    """One line with the figures of a feature."""
    console.print(
        f"[bold]feature {stats.feature}[/]  fires on {stats.density:.2%} of {rows:,} tokens ({stats.count:,}), "
        f"mean {stats.mean:.1f}, max {stats.max:.1f}"
    )


def feature_list(console: Console, features: list[FeatureStats]) -> None:
    """A table of features with their figures."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("feature", "density", "fires", "mean", "max"):
        table.add_column(column, justify="right")
    for stats in features:
        table.add_row(
            f"{stats.feature}", f"{stats.density:.3%}", f"{stats.count:,}", f"{stats.mean:.2f}", f"{stats.max:.1f}"
        )
    console.print(table)


def label_list(console: Console, scores: list[LabelScore]) -> None:
    """A table of the features that separate labels best."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("feature", "AUROC", "share", "documents"):
        table.add_column(column, justify="right")
    table.add_column("label")
    for score in scores:
        table.add_row(
            f"{score.feature}", f"{score.auroc:.3f}", f"{score.share:.2f}", f"{score.documents:,}", score.label
        )
    console.print(table)


def histogram_line(counts: tuple[int, ...], edges: np.ndarray) -> str:
    """A histogram as one line of blocks over the range that is not empty, with its ends."""
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return "never fires"
    first, last = filled[0], filled[-1]
    peak = max(counts)
    bars = "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // peak)] for count in counts[first : last + 1])
    return f"{edges[first]:.3g} {bars} {edges[last + 1]:.3g}"


def report(console: Console, details: FeatureReport, rows: int, edges: np.ndarray) -> None:
    """What `features show` prints: figures, histogram, tokens, labels and examples."""
    headline(console, details.stats, rows)
    console.print(f"[dim]activations[/]  {histogram_line(details.stats.histogram, edges)}")
    if not details.stats.count:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, justify in (("token", "left"), ("fires", "right"), ("of", "right"), ("mean", "right")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    for use in details.tokens:
        table.add_row(
            Text(f"«{one_line(use.token.strip(' ') or use.token)}»"),
            f"{use.fires:,}",
            f"{use.occurs:,}",
            f"{use.mean:.1f}",
        )
    console.print(table)
    for label, mean in details.labels[:8]:
        console.print(Text.assemble((f"{mean:8.3f} ", "bold"), "per token on ", label))
    examples(console, details.examples, details.stats.max)


def example_json(example: Example) -> dict:
    """One example as plain values."""
    before, token, after = example.snippet()
    return {
        "value": example.value,
        "token": token,
        "token_id": example.span.token_id,
        "before": before,
        "after": after,
        "document": example.document,
        "position": example.span.position,
        "origin": ORIGINS[example.span.origin],
        "label": example.label,
        "prompt": example.prompt,
        "copies": example.copies,
        "shard": example.shard,
        "row": example.row,
        "char_start": example.span.start,
        "char_end": example.span.end,
    }


def report_json(details: FeatureReport) -> dict:
    """`features show` as plain values."""
    return {
        **asdict(details.stats),
        "tokens": [asdict(use) for use in details.tokens],
        "labels": dict(details.labels),
        "examples": [example_json(e) for e in details.examples],
    }
