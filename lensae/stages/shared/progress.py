"""How a stage tells whoever watches how far it is; the views draw it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A unit of work being counted."""

    def start(self, what: str, total: int, unit: str) -> None:
        """A task of `total` units begins."""
        ...

    def advance(self, count: int, note: str = "") -> None:
        """`count` more units are done."""
        ...

    def expect(self, total: int) -> None:
        """A better guess of the total."""
        ...

    def say(self, line: str) -> None:
        """A line worth keeping."""
        ...


class Silent:
    """Progress that nobody watches."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, count: int, note: str = "") -> None:
        """Nothing."""

    def expect(self, total: int) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""
