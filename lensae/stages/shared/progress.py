"""How a stage reports its progress; the views draw it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a stage reports to: one task at a time, counted in units."""

    def start(self, what: str, total: int, unit: str) -> None:
        """A task of `total` units begins."""
        ...

    def advance(self, count: int, note: str = "") -> None:
        """`count` more units are done."""
        ...

    def expect(self, total: int) -> None:
        """Correct the expected total."""
        ...

    def say(self, line: str) -> None:
        """A message that should stay visible."""
        ...


class Silent:
    """Progress that is not shown."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, count: int, note: str = "") -> None:
        """Nothing."""

    def expect(self, total: int) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""
