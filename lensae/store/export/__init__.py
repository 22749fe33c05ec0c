"""A set in another format, for other tools: one module per format, named after the file ending that it writes.

A format's module has `OPEN` (two lines of Python that open what it wrote, with {path!r} in them) and
`write(table, target, advance)`, which builds the whole of `target` and calls `advance` with the number of rows read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lensae.core import registry
from lensae.core.durable import clear_partials
from lensae.core.errors import UserError
from lensae.core.paths import SetEntry
from lensae.store.export._table import Table
from lensae.store.reader import SetReader

FORMATS = "store.export"
FOLDER = "dataset"


def format_of(to: str) -> str:
    """The format for the ending of `to`; without an ending, or with a "/" at the end, a folder with a dataset.

    Raises UserError for any other ending.
    """
    ending = Path(to).suffix.removeprefix(".").lower()
    if not ending or to.endswith(os.sep):
        return FOLDER
    if ending not in registry.names(FORMATS):
        known = ", ".join(f".{name}" for name in registry.names(FORMATS) if name != FOLDER)
        raise UserError(f"there is no export format '.{ending}'", f"{known}, or a folder: {to}/")
    return ending


def export(entry: SetEntry, to: str, advance: Callable[[int], None] = lambda rows: None) -> str:
    """Write the set as what the ending of `to` says, whole or not at all; returns how Python opens it.

    Raises UserError when `to` exists, DamagedError naming the shard that cannot be read.
    """
    target = Path(to)
    module = registry.load(FORMATS, format_of(to))
    _refuse_existing(target)
    table = Table(SetReader(entry))
    if target.parent.is_dir():
        clear_partials(target.parent)
    try:
        module.write(table, target, advance)
    except FileExistsError:
        _refuse_existing(target)
        raise
    return module.OPEN.format(path=str(target))


def _refuse_existing(target: Path) -> None:
    """Raise UserError when `target` exists."""
    if os.path.lexists(target):
        raise UserError(f"{target} exists already", "give another --to, or remove it first")
