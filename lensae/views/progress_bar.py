"""The progress bar of a terminal; a module of its own, as importing it takes some milliseconds."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class RateColumn(ProgressColumn):
    """The speed in units per second."""

    def render(self, task: Task) -> Text:
        """The speed of one task."""
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text(f"{speed:,.3g} {unit}/s" if speed and speed < 10 else f"{speed or 0:,.0f} {unit}/s", style="cyan")


def progress_bar(console: Console) -> Progress:
    """A bar whose tasks have the fields `unit` and `note`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
