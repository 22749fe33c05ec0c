"""Plain text in UTF-8: documents are blocks between blank lines, or lines when there is none (--lines, --blocks)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lensae.core.records import Prompt, ReadOptions
from lensae.corpus.readers._lines import numbered_lines


def read(source: Path, options: ReadOptions) -> Iterator[Prompt]:
    """The documents of a .txt file; their ids are the numbers of their first lines."""
    lines = not _has_blocks(source) if options.lines is None else options.lines
    for number, text in _lines(source) if lines else _blocks(source):
        yield Prompt(f"line-{number}", text)


def _has_blocks(source: Path) -> bool:
    """Whether a blank line stands between lines of text."""
    text = blank = False
    for _number, line in numbered_lines(source):
        if line.strip() and blank:
            return True
        text, blank = text or bool(line.strip()), text and not line.strip()
    return False


def _lines(source: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in numbered_lines(source) if line.strip())


def _blocks(source: Path) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    first = 1
    for number, line in numbered_lines(source):
        if line.strip():
            first = first if block else number
            block.append(line)
        elif block:
            yield first, "\n".join(block)
            block = []
    if block:
        yield first, "\n".join(block)
