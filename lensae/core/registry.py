"""Plug-ins: one file in a package of lensae, or one entry point of another installed package, known by its name.

A file of the package is known by its own name (`tied_l1.py` as "tied-l1"); an entry point of the package's group by
the name it is given there, and its value is the module. A file goes before an entry point of the same name. Nothing is
imported until a plug-in is used.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from lensae.core.errors import LensaeError, unknown

# The group of entry points that adds to each package.
GROUPS = {
    "corpus.readers": "lensae.readers",
    "interpret.labels": "lensae.labels",
    "sae.architectures": "lensae.architectures",
    "sae.formats": "lensae.formats",
    "steering.operations": "lensae.operations",
}
# A full stop that ends a sentence: "et al. 2024" has none.
SENTENCE_END = re.compile(r"\.(?=\s+[A-Z`]|\s*$)")


def names(package: str) -> list[str]:
    """The command-line names in `package` (relative to lensae, e.g. "sae.architectures"), without importing any."""
    return sorted(_files(package).keys() | _entry_points(package).keys())


def check(package: str, name: str) -> None:
    """Raise UserError with the nearest names when `package` has no plug-in of the command-line name `name`."""
    if name not in _files(package) and name not in _entry_points(package):
        raise unknown(_kind(package), name, names(package))


def load(package: str, name: str) -> ModuleType:
    """Import the plug-in of `package` whose command-line name is `name`.

    Raises UserError when there is none, and LensaeError when the module of another package cannot be imported.
    """
    check(package, name)
    if path := _files(package).get(name):
        return importlib.import_module(f"lensae.{package}.{path.stem}")
    entry = _entry_points(package)[name]
    try:
        return entry.load()
    except Exception as error:
        owner = entry.dist.name if entry.dist else entry.value
        what = f"the {_kind(package)} '{name}' of the installed package {owner} cannot be imported: {error}"
        raise LensaeError(what, "repair or remove that package") from error


def summary(package: str, name: str) -> str:
    """The first sentence of a plug-in's docstring, without its full stop and read without running it; "" for none.

    Raises UserError when there is no such plug-in.
    """
    check(package, name)
    path = _files(package).get(name) or _source_file(_entry_points(package)[name].module)
    try:
        docstring = ast.get_docstring(ast.parse(path.read_bytes())) if path else None
    except (OSError, SyntaxError, ValueError):
        docstring = None
    text = " ".join((docstring or "").partition("\n\n")[0].split())
    end = SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def _files(package: str) -> dict[str, Path]:
    """The files of the package by command-line name."""
    folders = importlib.import_module(f"lensae.{package}").__path__
    paths = [path for folder in folders for path in Path(folder).glob("*.py") if not path.stem.startswith("_")]
    return {path.stem.replace("_", "-"): path for path in paths}


@cache
def _entry_points(package: str) -> dict[str, EntryPoint]:
    """The entry points of the package's group by name; the installed packages are searched once."""
    group = GROUPS.get(package)
    return {entry.name: entry for entry in entry_points(group=group)} if group else {}


def _kind(package: str) -> str:
    """What one plug-in of the package is called in messages."""
    return package.rsplit(".", 1)[-1].removesuffix("s")


def _source_file(module: str) -> Path | None:
    """The file of a module that may be in a package, found without importing either; None when it has no source."""
    first, *rest = module.split(".")
    try:
        spec, name = importlib.util.find_spec(first), first
        for part in rest:
            name = f"{name}.{part}"
            spec = PathFinder.find_spec(name, spec.submodule_search_locations) if spec else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
