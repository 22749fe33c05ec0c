"""Trainings on the command line that a signal ends: the same command ends in the same bytes."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import processes
import pytest
from training_helpers import digest, metrics

from lensae.sae.formats.saelens import WEIGHTS


@pytest.fixture
def long_recipe(tmp_path) -> Path:
    path = tmp_path / "long.toml"
    path.write_text(
        '[train]\narch = "batchtopk"\nwidth = 4\nk = 4\nbatch = 32\nepochs = 30\npatience = 60\n'
        "checkpoint_minutes = 1e-3\n"
    )
    return path


def start_training(recipe: Path, name: str) -> processes.Command:
    return processes.start("train", "--recipe", recipe, "--name", name)


def test_killed_on_the_command_line(toy, long_recipe):
    """SIGKILL gives no time for anything; the same command ends in the same bytes."""
    checkpoint = toy / "saes/killed/checkpoints/last.safetensors"
    process = start_training(long_recipe, "killed")
    process.until(checkpoint.is_file)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (toy / "saes/killed" / WEIGHTS).exists()
    for name in ("killed", "whole"):
        _out, err = start_training(long_recipe, name).finish()
        assert ("resuming at step" in err) == (name == "killed")
    assert digest(toy / "saes/killed") == digest(toy / "saes/whole")
    assert metrics(toy / "saes/killed") == metrics(toy / "saes/whole")
    assert not list(toy.rglob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_on_the_command_line(number, toy, long_recipe):
    process = start_training(long_recipe, "stopped")
    process.until((toy / "saes/stopped/checkpoints/last.safetensors").is_file)
    process.send_signal(number)
    _out, err = process.finish(130)
    assert "run the same command again to resume" in err and "Traceback" not in err
    training = json.loads((toy / "saes/stopped/training.json").read_text())
    assert training["completed_at"] == "" and "--name stopped" in training["command"]
