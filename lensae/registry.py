"""Plug-ins by file name: a module placed in a package is known by its own name, with nothing to edit elsewhere."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from lensae.errors import unknown

ROOT = Path(__file__).parent


def names(package: str) -> list[str]:
    """The command-line names in `package` (relative to lensae, e.g. "sae.architectures"), without importing any."""
    files = (ROOT / package.replace(".", "/")).glob("*.py")
    return sorted(f.stem.replace("_", "-") for f in files if not f.stem.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import the one module of `package` whose command-line name is `name`.

    Raises UserError with the nearest names when there is none.
    """
    if name not in names(package):
        kind = package.rsplit(".", 1)[-1].rstrip("s").replace("_", " ")
        raise unknown(kind, name, names(package))
    return importlib.import_module(f"lensae.{package}.{name.replace('-', '_')}")
