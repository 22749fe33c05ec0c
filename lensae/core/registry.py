"""Plug-ins by file name: a module placed in a package is known by its own name, with nothing to edit elsewhere."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from lensae.core.errors import unknown

ROOT = Path(__file__).resolve().parents[1]


def names(package: str) -> list[str]:
    """The command-line names in `package` (relative to lensae, e.g. "sae.architectures"), without importing any."""
    files = (ROOT / package.replace(".", "/")).glob("*.py")
    return sorted(f.stem.replace("_", "-") for f in files if not f.stem.startswith("_"))


def check(package: str, name: str) -> None:
    """Raise UserError with the nearest names when `package` has no module of the command-line name `name`."""
    if name not in names(package):
        raise unknown(package.rsplit(".", 1)[-1].removesuffix("s"), name, names(package))


def load(package: str, name: str) -> ModuleType:
    """Import the one module of `package` whose command-line name is `name` (UserError when there is none)."""
    check(package, name)
    return importlib.import_module(f"lensae.{package}.{name.replace('-', '_')}")
