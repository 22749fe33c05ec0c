"""Checking an index: every byte of every file against the digests of index.json."""

from __future__ import annotations

from pathlib import Path

from lensae.core.errors import DamagedError
from lensae.core.records import Fault
from lensae.index.manifest import MANIFEST, file_record, read_manifest


def verify_index(folder: Path) -> list[Fault]:
    """The faults of the index in `folder`: files that are missing or differ from what was written. An index that is
    unfinished or of another version has none: it is built again before it is used."""
    try:
        manifest = read_manifest(folder)
    except DamagedError as error:
        return [Fault(MANIFEST, "file", error.what)]
    faults = []
    for record in manifest.files if manifest else ():
        if not (folder / record.file).is_file():
            faults.append(Fault(record.file, "file", "missing"))
        elif file_record(folder, record.file) != record:
            faults.append(Fault(record.file, "file", "bytes differ from those written"))
    return faults
