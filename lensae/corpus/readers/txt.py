"""Plain text: a document per block, blank lines between blocks; one per line when there is no blank line at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lensae.corpus.readers._lines import numbered_lines
from lensae.records import Prompt


def read(path: Path) -> Iterator[Prompt]:
    """The documents of a .txt file; their ids are the numbers of their first lines."""
    blocks = list(_blocks(path))
    if len(blocks) == 1:
        number, lines = blocks[0]
        blocks = [(number + i, [line]) for i, line in enumerate(lines)]
    for number, lines in blocks:
        yield Prompt(f"line-{number}", "\n".join(lines))


def _blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    lines: list[str] = []
    for number, line in numbered_lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield number - len(lines), lines
            lines = []
    if lines:
        yield number - len(lines) + 1, lines
