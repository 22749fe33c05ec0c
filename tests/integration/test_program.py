"""Hints, examples and recorded commands name lensae as it was started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lensae.core import program

ROOT = Path(__file__).resolve().parents[2]
STARTED = [
    (str(ROOT / "main.py"), f"python {ROOT / 'main.py'}", f"torchrun --nproc-per-node 2 {ROOT / 'main.py'}"),
    (str(ROOT / "lensae" / "__main__.py"), "python -m lensae", "torchrun --nproc-per-node 2 -m lensae"),
    ("/opt/bin/lensae", "lensae", "torchrun --nproc-per-node 2 --no-python lensae"),
    ("/elsewhere/main.py", "lensae", "torchrun --nproc-per-node 2 --no-python lensae"),
    ("", "lensae", "torchrun --nproc-per-node 2 --no-python lensae"),
]


@pytest.mark.parametrize(("started", "alone", "parallel"), STARTED, ids=[row[0] or "nothing" for row in STARTED])
def test_the_command_is_named_as_it_was_called(started, alone, parallel, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started, "train", "--name", "two words"])
    assert program.command("store verify") == f"{alone} store verify" and program.command() == alone
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert program.command_line() == f"{alone} train --name 'two words'"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert program.command_line() == f"{parallel} train --name 'two words'"


@pytest.mark.parametrize("start", (["main.py"], ["-m", "lensae"]), ids=" ".join)
def test_help_shows_commands_that_can_be_typed(start):
    command = [sys.executable, *start, "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert f"Usage: python {' '.join(start)} train [OPTIONS]" in done.stdout
    assert f"\n python {' '.join(start)} train --width 8 --k 64" in done.stdout


PANELS = ["Collect and train", "Understand", "Steer and test", "Look after"]
COMMANDS = "survey collect train features evaluate index steer experiment store corpus doctor".split()


def test_commands_stand_in_the_order_of_the_work(lensae):
    out = lensae("--help")[1]
    assert sorted(PANELS, key=out.index) == PANELS and sorted(COMMANDS, key=lambda c: out.index(f"│ {c} ")) == COMMANDS


@pytest.mark.parametrize(("command", "count"), [("collect", 5), ("train", 5), ("steer", 4)])
def test_options_stand_in_panels(command, count, lensae):
    lines = lensae(command, "--help")[1].splitlines()
    titles = [line.strip("╭╮─ ") for line in lines if line.startswith("╭─")]
    panels = [title for title in titles[: titles.index("How to run") + 1] if title != "Arguments"]
    assert len(set(panels)) == len(panels) == count and "Options" not in titles
    last = lines.index(next(line for line in lines if "─ How to run ─" in line))
    assert any("--help" in line for line in lines[last:])
    assert not any("<bool>" in line or "list[" in line for line in lines)
