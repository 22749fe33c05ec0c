"""hdf5plugin is imported for what needs it and for nothing else, in interpreters that were started for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import HOOK, documents
from processes import ROOT

from lensae.store.shard import image

READ = """
import sys
if sys.argv[2] == "blocked":
    sys.modules["hdf5plugin"] = None  # as where it is not installed
from lensae.core.errors import LensaeError
from lensae.store.shard import Shard
try:
    with Shard(sys.argv[1]) as shard:
        shard.read("activations")
        print("rows", shard.rows)
except LensaeError as error:
    print(type(error).__name__, error.what, "|", error.hint)
print("loaded", "hdf5plugin" in sys.modules and sys.modules["hdf5plugin"] is not None, "torch" in sys.modules)
"""


def shard_bytes(dtype: str, compress: str | None) -> bytes:
    return bytes(image(documents(), HOOK, dtype, {"pass": 0, "first_document": 0}, compress)[0])


def read(path: Path, blocked: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), blocked], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(("compress", "loaded"), [(None, False), ("gzip", False), ("zstd", True)])
def test_is_imported_when_it_is_needed(compress, loaded, tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(shard_bytes("float16", compress))
    assert read(path).splitlines()[-1] == f"loaded {loaded} False"


@pytest.mark.parametrize("compress", [None, "gzip"])
def test_is_not_missed_otherwise(compress, tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(shard_bytes("float16", compress))
    assert read(path, "blocked").startswith("rows ")


def test_reading_says_that_it_is_missing(tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(shard_bytes("float16", "zstd"))
    first = read(path, "blocked").splitlines()[0]
    assert first.startswith("LensaeError") and str(path) in first and "needs hdf5plugin" in first
    assert "pip install hdf5plugin" in first
