"""A store as an object: what it holds, and how a set in it is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lensae.core.paths import SaeEntry, SetEntry, find_set, list_saes, list_sets, use_store

if TYPE_CHECKING:
    from lensae.store.reader import SetReader


class Store:
    """A folder of activation sets and of the SAEs trained on them; it comes into being when something is collected.

    It is this folder whatever the working directory and the environment are. A set is named `<model>/<hook>`, or by
    either alone where that is enough.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).absolute()

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def sets(self) -> list[SetEntry]:
        """Every activation set, the one finished last at the end; unfinished ones come first."""
        with use_store(self.path):
            return list_sets()

    def open(self, set_name: str | None = None) -> SetReader:
        """A finished set, ready to be read: by default the one finished last.

        Raises UserError when there is none of that name, or its collection is unfinished.
        """
        from lensae.store.reader import SetReader

        with use_store(self.path):
            return SetReader(find_set(set_name))

    def saes(self, set_name: str | None = None) -> list[SaeEntry]:
        """The SAEs trained on a set, or on any; the current one is at the end."""
        with use_store(self.path):
            sets = [find_set(set_name)] if set_name else list_sets()
            return sorted((sae for entry in sets for sae in list_saes(entry)), key=lambda sae: sae.current_since)


def as_store(store: Store | str | os.PathLike[str]) -> Store:
    """The store in a folder."""
    return store if isinstance(store, Store) else Store(store)
