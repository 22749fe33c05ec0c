"""What must not import torch, transformers or Triton, in interpreters that were started for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import documents, write_set
from processes import ROOT

HEAVY = {"torch", "transformers", "transformer_lens"}
LIGHT = [
    ["--help"],
    ["collect", "--help"],
    ["steer", "--help"],
    ["store", "list"],
    ["features", "top", "0", "--k", "5"],
    ["features", "list", "--sort", "label"],
    ["features", "show", "1"],
    ["features", "top", "999999"],
    ["train", "--help"],
    ["train", "--recipe", "no-such-file.toml"],
    ["train", "--k", "100000"],
    ["train", "--arch", "relu", "--target-l0", "100000"],
    ["collect", "--temperature", "-1"],
    ["collect", "--corpus", "nope"],
    ["steer", "--feature", "999999"],
    ["steer", "--feature", "1", "--op", "clmp"],
    ["evaluate", "--sae", "nope"],
    ["index", "--set", "nope"],
    ["experiment", "nope.toml"],
]


SET_COMMANDS = ["export --to set.npz", "export --to set.safetensors", "export --to set/", "view", "remove toy --yes"]
WATCH = (
    "import sys; from lensae.cli import main\n"
    "try: main()\nexcept SystemExit as end: print('STATUS', end.code or 0)\nelse: print('STATUS 0')\n"
    f"print('HEAVY', sorted(set(sys.modules) & {HEAVY!r}))"
)


def heavy_modules(arguments: list[str], **options) -> tuple[str, str]:
    """The last two lines that a command printed: its exit status, and which of HEAVY it has imported."""
    command = [sys.executable, "-c", WATCH, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    lines = done.stdout.splitlines()[-2:]
    assert len(lines) == 2, done.stdout + done.stderr
    return lines[0], lines[1]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_never_load_torch(arguments, trained):
    environment = {**os.environ, "LENSAE_STORE": str(trained)}
    assert heavy_modules(arguments, env=environment, cwd=ROOT)[1] == "HEAVY []"


@pytest.mark.parametrize("arguments", SET_COMMANDS)
def test_what_is_done_with_a_set_does_not_load_torch(arguments, folder, store, tmp_path):
    write_set(folder, documents())
    environment = {**os.environ, "LENSAE_STORE": str(store), "PYTHONPATH": str(ROOT)}
    assert heavy_modules(["store", *arguments.split()], env=environment, cwd=tmp_path) == ("STATUS 0", "HEAVY []")


def test_without_cuda_triton_is_not_loaded():
    """On CPUs the kernels are PyTorch's, and a training's modules do not import Triton."""
    code = (
        "import sys, torch; before = 'triton' in sys.modules; from lensae.sae import kernels; "
        "from lensae.sae.train import loop; "
        "assert kernels.choose_backend(64, 8, 64, 4, 'cpu') == kernels.Backend(); "
        "assert ('triton' in sys.modules) == before; "
        "assert 'lensae.sae.kernels.triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
