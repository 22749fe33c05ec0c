"""A set in another format, for other tools: one file here per format, whose name is the ending of what it writes.

A format's module has `OPEN` (two lines of Python that open what it wrote, with {path!r} in them) and
`write(table, target, advance)`, which builds the whole of `target`; `advance` is told the rows as they go by.
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
    """The format that the ending of `to` means; without one, or with a "/" at the end, a folder with a dataset.

    Raises UserError for any other ending.
    """
    ending = Path(to).suffix.removeprefix(".").lower()
    if not ending or to.endswith(os.sep):
        return FOLDER
    if ending not in registry.names(FORMATS):
        known = ", ".join(f".{name}" for name in registry.names(FORMATS) if name != FOLDER)
        raise UserError(f"nothing is known to write as '.{ending}'", f"{known}, or a folder: {to}/")
    return ending


def export(entry: SetEntry, to: str, advance: Callable[[int], None] = lambda rows: None) -> str:
    """Write the set as what the ending of `to` says, whole or not at all; returns how Python opens it.

    Raises UserError when `to` is there already, DamagedError naming the shard that cannot be read.
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
    """Raise UserError when there is something at `target`."""
    if os.path.lexists(target):
        raise UserError(f"{target} is there already", "give another --to, or take that away first")
