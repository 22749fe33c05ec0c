"""Checking an index: every byte of every file against the digests of index.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lensae.errors import DamagedError
from lensae.index.manifest import MANIFEST, file_record, read_manifest


@dataclass(frozen=True)
class IndexFault:
    """Something wrong with a file of the index, by its path below the index's folder."""

    file: str
    what: str


def verify_index(folder: Path) -> list[IndexFault]:
    """The faults of the index in `folder`: files that are missing or differ from what was written. An index that is
    unfinished or of another version has none: it is built again before it is used."""
    try:
        manifest = read_manifest(folder)
    except DamagedError as error:
        return [IndexFault(MANIFEST, error.what)]
    faults = []
    for record in manifest.files if manifest else ():
        if not (folder / record.file).is_file():
            faults.append(IndexFault(record.file, "missing"))
        elif file_record(folder, record.file) != record:
            faults.append(IndexFault(record.file, "bytes differ from those written"))
    return faults
