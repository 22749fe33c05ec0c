"""UTF-8 lines, with an error that names the first byte that is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lensae.core.errors import UserError


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text without its line end) of a UTF-8 file, with or without a byte-order mark."""
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                at = f"{path}, line {number}: byte {error.start + 1} is not UTF-8"
                raise UserError(at, "save the file as UTF-8") from None
            yield number, line.rstrip("\r\n")
