"""Where output goes: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

from rich.console import Console

PLAIN_WIDTH = 120


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def out() -> Console:
    """The console for results."""
    return _console(stderr=False)


def err() -> Console:
    """The console for everything else."""
    return _console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout; a float that JSON cannot hold becomes null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def current(set_name: str, sae_name: str | None = None) -> None:
    """Print which set and SAE a command uses, as its first line."""
    line = f"[dim]set[/] {set_name}" + (f"   [dim]SAE[/] {sae_name}" if sae_name else "")
    err().print(line)
