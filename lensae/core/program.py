"""How lensae was started, so that hints, examples and records name commands as they can be typed again."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
MAIN_FILE = PACKAGE.parent / "main.py"


def command(arguments: str = "", process_count: int = 1) -> str:
    """The command line that runs `arguments`: "store verify" becomes "python main.py store verify" in a checkout.

    It is "python -m lensae store verify" when the package was run, and "lensae store verify" from the console command
    or another program. For several processes `torchrun` starts it.
    """
    program = _program()
    if process_count > 1:
        script = program[1:] or ["--no-python", *program]
        program = ["torchrun", "--nproc-per-node", str(process_count), *script]
    return f"{join(program)} {arguments}".rstrip()


def command_line() -> str:
    """The command line that started this process and those that run beside it."""
    return command(join(sys.argv[1:]), int(os.environ.get("WORLD_SIZE", 1)))


def join(words: Sequence[str]) -> str:
    """The words as one line for the shell of this system, quoted where it needs quotes."""
    if os.name != "nt":
        return shlex.join(words)
    import subprocess  # which takes some milliseconds

    return subprocess.list2cmdline(words)


def _program() -> list[str]:
    started = Path(sys.argv[0])
    if started.name == MAIN_FILE.name and started.resolve() == MAIN_FILE:
        return ["python", sys.argv[0]]
    if started.resolve() == PACKAGE / "__main__.py":
        return ["python", "-m", "lensae"]
    return ["lensae"]
