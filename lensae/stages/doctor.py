"""doctor: checks that everything lensae needs is installed and works."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
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
    return [_python(), *_versions(), *_devices(), *_processor(), *_model(), _disk()]


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


def _devices() -> list[Fact]:
    """What computes when --device is not given, and what else could."""
    from lensae.core.device import KINDS, choose, unavailable

    chosen = choose()
    reasons = {kind: unavailable(kind) for kind in KINDS}
    why = "an NVIDIA or AMD GPU" if chosen == "cuda" else f"no CUDA: {reasons['cuda']}"
    facts = [Fact("device", f"{chosen} ({why})")]
    facts += [Fact(kind, reasons[kind] or _described(kind)) for kind in KINDS if kind != "cpu"]
    return facts


def _described(kind: str) -> str:
    import torch

    if kind == "cuda":
        return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return "available with --device mps; never chosen by itself, as nothing has been checked on it"


def _processor() -> list[Fact]:
    """How the CPU computes."""
    import torch

    from lensae.model.precision import medium_is_exact

    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    products = (
        "oneDNN" if torch.backends.mkldnn.is_available() and medium_is_exact() else blas[1] if blas else "default"
    )
    bfloat16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return [
        Fact("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        Fact("float32 products", f"{products} ({torch.backends.cpu.get_cpu_capability()})"),
        Fact("bfloat16 products", "oneDNN" if bfloat16 else "this CPU has no instructions for them"),
    ]


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
