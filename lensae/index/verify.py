"""Checking an index: every chunk of every segment against its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lensae.core.errors import DamagedError
from lensae.index.file import open_segment


@dataclass(frozen=True)
class IndexFault:
    """Something wrong with a file of the index, by its path below the index's folder."""

    file: str
    what: str


def verify_index(folder: Path) -> list[IndexFault]:
    """The faults of the index in `folder`: segments that cannot be read or have a chunk with another checksum."""
    faults = []
    for path in sorted(folder.glob("*.h5")):
        try:
            with open_segment(path) as segment:
                for dataset in segment.values():
                    dataset[...]
        except (DamagedError, OSError, RuntimeError, KeyError, AttributeError):
            faults.append(IndexFault(path.name, "cannot be read, or bytes differ from those written"))
    return faults
