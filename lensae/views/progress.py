"""Progress: a bar with rate and time left on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lensae.views.console import err

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_EVERY_S = 10.0


class Watch:
    """A context manager that draws what a stage reports (lensae.stages.shared.progress.Progress)."""

    def __init__(self) -> None:
        self.console = err()
        self.live = self.console.is_terminal
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def start(self, what: str, total: int, unit: str) -> None:
        """A task of `total` units begins."""
        self._close()
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self.started = self.printed_at = time.monotonic()
        if self.live:
            from lensae.views.progress_bar import progress_bar

            self.bar = progress_bar(self.console)
            self.bar.start()
            self.task = self.bar.add_task(what, total=total, unit=unit, note="")

    def expect(self, total: int) -> None:
        """Correct the expected total."""
        self.total = total
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, total=total)

    def advance(self, count: int, note: str = "") -> None:
        """`count` more units are done."""
        self.done += count
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=count, note=note)
        elif not self.live and (time.monotonic() - self.printed_at > PLAIN_EVERY_S or self.done >= self.total):
            self._plain_line(note)

    def _plain_line(self, note: str) -> None:
        self.printed_at = time.monotonic()
        rate = self.done / max(self.printed_at - self.started, 1e-9)
        left = max(self.total - self.done, 0) / max(rate, 1e-9)
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        line = f"{self.what}: {self.done:,}/{self.total:,} {self.unit}, {speed}/s, {left:,.0f} s left  {note}"
        self.console.print(line.rstrip(), markup=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Print a line that stays on the screen."""
        self.console.print(line, style="dim", markup=False)
