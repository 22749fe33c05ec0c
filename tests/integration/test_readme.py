"""The README's commands do what it says, in its order, in a store of their own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
# The one takes minutes, the other is what runs this suite.
ELSEWHERE = {"make demo", "make test"}


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_two_commands_come_first():
    assert commands()[:2] == ["make demo", "make test"]


def test_the_daily_commands_are_there():
    assert {
        "python main.py collect gpt2-medium --hook blocks.6.hook_resid_post",
        "make train",
        "python main.py features top 447 --k 20",
        "python main.py steer --feature 447 --scale 8",
    } <= set(commands())


def in_this_environment(line: str) -> list[str]:
    """`python`, `torchrun` and `make` of the README, run by the Python that runs the tests."""
    words = shlex.split(line)
    if words[0] == "make":
        return ["make", f"PY={sys.executable}", "READY=", *words[1:]]
    if words[0].endswith("torchrun"):
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]]
    assert words[:2] == ["python", "main.py"], line
    return [sys.executable, *words[1:]]


def test_every_command_runs(hub_cache, tmp_path):
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(hub_cache),
        "LENSAE_STORE": str(tmp_path / "store"),
        "LENSAE_EXPERIMENTS": str(tmp_path / "experiments"),
    }
    for line in commands():
        if line in ELSEWHERE:
            continue
        done = subprocess.run(in_this_environment(line), capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, f"$ {line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.stdout.strip(), f"$ {line} printed nothing"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_no_machine_paths():
    for path in ROOT.rglob("*"):
        skipped = {
            ".venv",
            ".peers",
            ".git",
            "store",
            "results",
            "__pycache__",
            ".ruff_cache",
            ".pytest_cache",
            ".hypothesis",
        }
        if (
            path.is_file()
            and not skipped & set(path.relative_to(ROOT).parts)
            and path.suffix in {".py", ".md", ".toml"}
        ):
            assert not re.search(r"(^|[\s\"'(])/(home|work|root)/", path.read_text(encoding="utf-8")), path
