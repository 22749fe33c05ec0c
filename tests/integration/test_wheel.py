"""A wheel built from the checkout works outside it: commands, shipped corpora, the library."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LIBRARY = """
import sys
from importlib.resources import files
import lensae

assert lensae.__file__.startswith(sys.prefix), lensae.__file__
assert (files("lensae") / "py.typed").is_file()
[entry] = lensae.Store("store").sets()
print(entry.name, entry.rows)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of the commands of a fresh environment with the wheel; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT)
    venv.create(folder / "environment", with_pip=False)
    commands = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
    [wheel] = folder.glob("lensae-*.whl")
    python = commands / Path(sys.executable).name
    packages = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _run(*pip, "--python", python, "install", "--no-deps", "--no-index", "--force-reinstall", wheel)
    return commands


def _run(*command: object, folder: Path = ROOT) -> str:
    """A command's output; its failure is the test's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LENSAE_", "PYTHON"))}
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
def test_a_wheel_works_outside_the_checkout(installed, tmp_path, model_dir):
    lensae, python = installed / "lensae", installed / Path(sys.executable).name
    assert "collect" in _run(lensae, "--help", folder=tmp_path)
    assert "themes" in _run(lensae, "corpus", "stats", "themes", folder=tmp_path)
    options = ("--corpus", "probes", "--max-new-tokens", "2", "--hook", "blocks.1.hook_resid_post")
    _run(lensae, "collect", model_dir("gpt2"), *options, folder=tmp_path)
    assert "tiny-gpt2/blocks.1.hook_resid_post" in _run(python, "-c", LIBRARY, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
