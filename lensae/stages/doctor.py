"""doctor: checks that everything lensae needs is installed and works."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass

from lensae.core.errors import LensaeError
from lensae.core.paths import free_bytes, store_root

PACKAGES = ("torch", "transformer-lens", "transformers", "typer", "rich", "h5py", "numpy", "scipy", "safetensors")
ROOM_GIB = 2


@dataclass(frozen=True)
class Fact:
    """The result of one check."""

    name: str
    value: str
    good: bool = True


def examine() -> list[Fact]:
    """The results of all checks."""
    return [_python(), *_versions(), _device(), *_model(), _disk()]


def _python() -> Fact:
    return Fact("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _versions() -> list[Fact]:
    facts = []
    for name in PACKAGES:
        try:
            facts.append(Fact(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            facts.append(Fact(name, "not installed", good=False))
    return facts


def _device() -> Fact:
    import torch

    if torch.cuda.is_available():
        return Fact("device", f"cuda ({torch.cuda.get_device_name()}), {torch.get_num_threads()} CPU threads")
    return Fact("device", f"cpu, {torch.get_num_threads()} threads of {os.cpu_count()} cores")


def _model() -> list[Fact]:
    from lensae.model.gguf import cache_root, embedded_file, unpacked_path

    try:
        file = embedded_file()
        folder = unpacked_path(file)
    except LensaeError as error:
        return [Fact("embedded model", f"{error.what}: {error.hint}", good=False)]
    state = "unpacked" if (folder / "config.json").is_file() else "will be unpacked on first use"
    return [Fact("embedded model", f"{file.name} ({state})"), Fact("cache", str(cache_root()))]


def _disk() -> Fact:
    free = free_bytes() / 2**30
    return Fact("disk", f"{free:,.1f} GiB free for {store_root()}/", good=free > ROOM_GIB)
