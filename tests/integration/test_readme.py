"""The README's commands do what it says, in its order, in a store of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from processes import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
# What is typed every day: in this order, on an empty store, with nothing between.
DAILY = [
    "python main.py collect gpt2-medium --hook blocks.6.hook_resid_post",
    "make train",
    "python main.py features top 447 --k 20",
    "python main.py steer --feature 447 --scale 8",
]
# The first takes minutes, the second is what runs this suite.
NOT_RUN = {"make demo", "make test"}
SKIPPED = {".venv", ".peers", ".git", "store", "results", "__pycache__", ".ruff_cache", ".pytest_cache", ".hypothesis"}


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_two_commands_come_first():
    assert commands()[:2] == ["make demo", "make test"]


def test_the_daily_commands_follow_each_other():
    first = commands().index(DAILY[0])
    assert commands()[first : first + len(DAILY)] == DAILY


@pytest.fixture(scope="module")
def readme_store(hub_cache, tmp_path_factory):
    """An empty store that the commands share."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSAE_STORE", str(folder / "store"))
        patch.setenv("LENSAE_EXPERIMENTS", str(folder / "experiments"))
        yield folder / "store"


def run(line: str) -> str:
    """What a line of the README prints: `make` in a shell's way, the others in processes that are forked."""
    words = shlex.split(line)
    if words[0] == "make":
        command = ["make", f"PY={sys.executable}", "READY=", *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        status, out, err = done.returncode, done.stdout, done.stderr
    elif words[0].endswith("torchrun"):
        assert words[1:4] == ["--nproc-per-node", "2", "main.py"], line
        process = processes.torchrun(processes.main, *words[4:])
        (out, err), status = process.communicate(), process.returncode
    else:
        assert words[:2] == ["python", "main.py"], line
        process = processes.start(*words[2:])
        (out, err), status = process.communicate(), process.returncode
    assert status == 0, f"$ {line}\n{out[-2000:]}\n{err[-2000:]}"
    assert out.strip(), f"$ {line} printed nothing"
    return out


def test_the_daily_commands_on_an_empty_store(readme_store):
    """gpt2-medium by name, out of a hub cache, offline; each command makes what the next one needs."""
    _collected, trained, top, steered = (run(line) for line in DAILY)
    manifest = json.loads((readme_store / "gpt2-medium/blocks.6.hook_resid_post/manifest.json").read_text())
    assert manifest["model"]["revision"] == "0123456789abcdef0123456789abcdef01234567"
    assert "explained variance" in trained and "feature 447" in top and "control: random direction" in steered


def test_every_command_runs(readme_store):
    for line in commands():
        if line not in NOT_RUN and line not in DAILY:
            run(line)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_no_machine_paths():
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED]
        for path in (Path(folder) / name for name in names):
            if path.suffix in {".py", ".md", ".toml"}:
                assert not re.search(r"(^|[\s\"'(])/(home|work|root)/", path.read_text(encoding="utf-8")), path
