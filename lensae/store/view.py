"""`view.h5`: the whole set as if it were one shard, in a small file that reads the rows out of the shards.

It has the datasets of a shard (lensae.store.schema) under the same names. Those that are alike in the shards and in
the whole set are virtual datasets over `shards/*.h5`, by relative names, so the set's folder can be moved; those that
count documents, rows or inputs (`document`, `documents/start`, `documents/input_start`) are real and count through all
shards, as int64. HDF5 gives fill values where a shard has gone missing: NaN in `activations`, -1 (origin: 255) and "".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from lensae.core.durable import new_file
from lensae.core.paths import SetEntry
from lensae.store.reader import SetReader
from lensae.store.schema import CHUNK_ROWS, ROW_COLUMNS, SCHEMA, TEXT_COLUMNS

VIEW = "view.h5"
OPEN = """\
import {modules}; file = h5py.File({path!r}); rows = file["activations"][:1000]
text = file["documents/text"].asstr()[file["document"][0]]; print(text[file["char_start"][0]:file["char_end"][0]])"""
REAL = {"compression": "gzip", "shuffle": True, "fletcher32": True, "track_times": False}


@dataclass(frozen=True)
class _Part:
    """One shard's place in the view: what it is called and how many rows, documents and input tokens it has."""

    file: str
    rows: int
    documents: int
    inputs: int


def write_view(entry: SetEntry) -> Path:
    """Make the set's `view.h5` anew, whole or not at all; returns its path.

    Raises DamagedError naming the shard that cannot be read.
    """
    reader = SetReader(entry)
    parts = [_part(reader, number) for number in range(len(reader.shards))]
    path = entry.path / VIEW
    with new_file(path) as partial, h5py.File(partial, "w", libver=("v110", "v110")) as file:
        _virtual(file, parts, reader.width, np.dtype(entry.manifest.dtype))
        _counting(file, parts, reader)
        totals = {"rows": reader.rows, "documents": sum(part.documents for part in parts)}
        file.attrs.update({"schema": SCHEMA, "hook": entry.manifest.hook, **totals})
    return path


def how_to_open(entry: SetEntry) -> str:
    """Two lines of Python that open the set's view; a compression that HDF5 lacks needs its plug-in imported."""
    plugin = any(made.spec.get("compress") == "zstd" for made in entry.manifest.passes)
    return OPEN.format(modules="h5py, hdf5plugin" if plugin else "h5py", path=str(entry.path / VIEW))


def _part(reader: SetReader, number: int) -> _Part:
    with reader.shard(number) as shard:
        inputs = int(shard.read("documents/input_start", -1))
        return _Part(reader.shards[number].file, shard.rows, shard.n_documents, inputs)


def _virtual(file: h5py.File, parts: list[_Part], width: int, dtype: np.dtype) -> None:
    rows, documents = [part.rows for part in parts], [part.documents for part in parts]
    _join(file, "activations", parts, rows, dtype, np.nan, (width,))
    for name, kind in ROW_COLUMNS.items():
        if name != "document":
            _join(file, name, parts, rows, kind, 255 if kind == np.uint8 else -1)
    for name in TEXT_COLUMNS:
        _join(file, f"documents/{name}", parts, documents, h5py.string_dtype("utf-8"), None)
    _join(file, "documents/input_ids", parts, [part.inputs for part in parts], np.int32, -1)


def _join(file: h5py.File, name: str, parts: list[_Part], lengths: list[int], dtype, fill, inner=()) -> None:
    """One virtual dataset: the `lengths` entries of shape `inner` that each shard has under `name`, in order."""
    layout = h5py.VirtualLayout((sum(lengths), *inner), dtype)
    ends = np.cumsum(lengths).tolist()
    for part, length, end in zip(parts, lengths, ends, strict=True):
        if length:
            layout[end - length : end] = h5py.VirtualSource(f"shards/{part.file}", name, (length, *inner), dtype)
    file.create_virtual_dataset(name, layout, fillvalue=fill)


def _counting(file: h5py.File, parts: list[_Part], reader: SetReader) -> None:
    """The datasets whose numbers depend on the shards before, written a shard at a time."""
    documents = sum(part.documents for part in parts)
    document = _create(file, "document", reader.rows)
    start = _create(file, "documents/start", documents + 1)
    input_start = _create(file, "documents/input_start", documents + 1)
    row = first = token = 0
    for number, part in enumerate(parts):
        with reader.shard(number) as shard:
            document[row : row + part.rows] = shard.read("document") + np.int64(first)
            start[first : first + part.documents + 1] = shard.read("documents/start") + row
            input_start[first : first + part.documents + 1] = shard.read("documents/input_start") + token
        row, first, token = row + part.rows, first + part.documents, token + part.inputs


def _create(file: h5py.File, name: str, length: int) -> h5py.Dataset:
    chunks = (min(length, 16 * CHUNK_ROWS),)
    return file.create_dataset(name, (length,), np.int64, chunks=chunks, **REAL)
