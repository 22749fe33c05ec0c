"""Progress for callers: an object with the methods of a stage's Progress, or one plain function."""

from __future__ import annotations

from collections.abc import Callable

from lensae.stages.shared.progress import Progress, Silent

ProgressFunction = Callable[[str, int, int], object]


def as_progress(progress: Progress | ProgressFunction | None) -> Progress:
    """What a stage reports to: nothing, the object itself, or calls of `progress(what, done, total)`."""
    if progress is None:
        return Silent()
    return CallingProgress(progress) if callable(progress) else progress


class CallingProgress:
    """Calls `function(what, done, total)` as work goes on; for a plain message both numbers are 0."""

    def __init__(self, function: ProgressFunction):
        self.function = function
        self.what, self.done, self.total = "", 0, 0

    def start(self, what: str, total: int, unit: str) -> None:
        """A task of `total` units begins."""
        self.what, self.done, self.total = f"{what} ({unit})", 0, total
        self.function(self.what, 0, total)

    def expect(self, total: int) -> None:
        """A better guess of the total."""
        self.total = total

    def advance(self, count: int, note: str = "") -> None:
        """`count` more units are done."""
        self.done += count
        self.function(self.what, self.done, self.total)

    def say(self, line: str) -> None:
        """A message."""
        self.function(line, 0, 0)
