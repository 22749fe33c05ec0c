"""Options that several commands share."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated

import typer

SetOption = Annotated[
    str | None,
    typer.Option("--set", help="Activation set: <model>/<hook> or a folder. Default: the one finished last."),
]
SaeOption = Annotated[
    str | None, typer.Option("--sae", help="SAE: a name or a folder. Default: the one finished last.")
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps. auto: a CUDA GPU if there is one, else the CPU."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def examples(*lines: str) -> str:
    """An epilog that shows commands, one a line."""
    return "\n\n".join(["[bold]Examples[/]", *(f"[cyan]python main.py {line}[/]" for line in lines)])


def command_line() -> str:
    """What was typed, as it can be typed again."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    start = ["torchrun", "--nproc-per-node", str(processes)] if processes > 1 else ["python"]
    return shlex.join([*start, "main.py", *sys.argv[1:]])
