"""A picture (SVG) of terminal output."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from lensae.core.durable import write_file

FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


class Picture:
    """Collects what is drawn on `console` and saves it as one SVG file without external fonts."""

    def __init__(self, width: int = 120):
        self.console = Console(record=True, file=io.StringIO(), width=width, force_terminal=True, highlight=False)

    def save(self, path: Path, title: str) -> Path:
        """Write the file atomically."""
        write_file(path, FONT_FACE.sub("", self.console.export_svg(title=title)).encode())
        return path
