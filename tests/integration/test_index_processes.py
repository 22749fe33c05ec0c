"""Indexes that commands build on their way, in processes of their own."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import processes
import pytest


@pytest.fixture
def index(trained_copy) -> Path:
    """Where the current SAE's index was, and its content before it was removed."""
    return next(trained_copy.glob("*/*/saes/*/index"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of the index."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_two_commands_at_once_build_one_index(index):
    whole = content(index)
    shutil.rmtree(index)
    commands = [processes.start("features", *words, "--json") for words in (("list",), ("top", 0), ("show", 1))]
    written = [command.finish() for command in commands]
    assert all(json.loads(out) for out, _err in written)
    assert all("it is built first" in err for _out, err in written if err) and content(index) == whole
    _out, err = processes.run("features", "top", 0)
    assert "index" not in err


def test_killed_while_building(index):
    """What was finished is kept, nothing half written is, and the next command comes to the same bytes."""
    whole = content(index)
    shutil.rmtree(index)
    build = processes.start("index")
    build.until(lambda: any(index.glob("rows/*.h5")) or build.poll() is not None)
    build.send_signal(signal.SIGKILL)
    build.process.join()
    processes.run("features", "list")
    assert content(index) == whole
