"""`view.h5`: the whole set as if it were one shard, in a small file that reads the rows out of the shards.

It has the datasets of a shard (lensae.store.schema) under the same names. Most are virtual datasets over `shards/*.h5`,
by relative names, so that the set's folder can be moved. Those that number documents, rows or inputs (`document`,
`documents/start`, `documents/input_start`) are stored in the view, as int64, and number through all shards. HDF5 gives
fill values for a missing shard: NaN in `activations`, -1 (origin: 255) and "".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lensae.core.durable import new_file
from lensae.core.manifest import ShardRecord
from lensae.core.paths import SetEntry
from lensae.store.reader import SetReader
from lensae.store.schema import CHUNK_ROWS, ROW_COLUMNS, SCHEMA, TEXT_COLUMNS

VIEW = "view.h5"
OPEN = """\
import {modules}; file = h5py.File({path!r}); rows = file["activations"][:1000]
text = file["documents/text"].asstr()[file["document"][0]]; print(text[file["char_start"][0]:file["char_end"][0]])"""
STORED = {"compression": "gzip", "shuffle": True, "fletcher32": True, "track_times": False}


def write_view(entry: SetEntry) -> Path:
    """Write the set's `view.h5` anew, whole or not at all; returns its path.

    Raises DamagedError naming the shard that cannot be read.
    """
    reader = SetReader(entry)
    path = entry.path / VIEW
    with new_file(path) as partial, h5py.File(partial, "w", libver=("v110", "v110")) as file:
        inputs = _write_numbering(file, reader)
        _write_virtual(file, reader.shards, inputs, reader.width, np.dtype(entry.manifest.dtype))
        totals = {"rows": reader.rows, "documents": sum(shard.documents for shard in reader.shards)}
        file.attrs.update({"schema": SCHEMA, "hook": entry.manifest.hook, **totals})
    return path


def how_to_open(entry: SetEntry) -> str:
    """Two lines of Python that open the set's view; a compression that HDF5 lacks needs its plug-in imported."""
    plugin = any(made.spec.get("compress") == "zstd" for made in entry.manifest.passes)
    return OPEN.format(modules="h5py, hdf5plugin" if plugin else "h5py", path=str(entry.path / VIEW))


def _write_numbering(file: h5py.File, reader: SetReader) -> list[int]:
    """The datasets whose numbers depend on the shards before, each shard opened once; returns its input tokens."""
    documents = sum(shard.documents for shard in reader.shards)
    document = _create(file, "document", reader.rows)
    start = _create(file, "documents/start", documents + 1)
    input_start = _create(file, "documents/input_start", documents + 1)
    row = first = token = 0
    inputs = []
    for number, listed in enumerate(reader.shards):
        with reader.shard(number) as shard:
            document[row : row + listed.rows] = shard.read("document") + np.int64(first)
            start[first : first + listed.documents + 1] = shard.read("documents/start") + row
            ends = shard.read("documents/input_start")
            input_start[first : first + listed.documents + 1] = ends + token
        inputs.append(int(ends[-1]))
        row, first, token = row + listed.rows, first + listed.documents, token + inputs[-1]
    return inputs


def _create(file: h5py.File, name: str, length: int) -> h5py.Dataset:
    chunks = (min(length, 16 * CHUNK_ROWS),)
    return file.create_dataset(name, (length,), np.int64, chunks=chunks, **STORED)


def _write_virtual(file: h5py.File, shards: list[ShardRecord], inputs: list[int], width: int, dtype: np.dtype) -> None:
    """The datasets that are read out of the shards."""
    rows, documents = [shard.rows for shard in shards], [shard.documents for shard in shards]
    _join(file, "activations", shards, rows, dtype, np.nan, (width,))
    for name, kind in ROW_COLUMNS.items():
        if name != "document":
            _join(file, name, shards, rows, kind, 255 if kind == np.uint8 else -1)
    for name in TEXT_COLUMNS:
        _join(file, f"documents/{name}", shards, documents, h5py.string_dtype("utf-8"), None)
    _join(file, "documents/input_ids", shards, inputs, np.int32, -1)


def _join(
    file: h5py.File,
    name: str,
    shards: list[ShardRecord],
    lengths: list[int],
    dtype: Any,
    fill: Any,
    entry_shape: tuple[int, ...] = (),
) -> None:
    """One virtual dataset: the entries that each shard has under `name`, as many as `lengths` says, in order."""
    layout = h5py.VirtualLayout((sum(lengths), *entry_shape), dtype)
    ends = np.cumsum(lengths).tolist()
    for shard, length, end in zip(shards, lengths, ends, strict=True):
        if length:
            source = h5py.VirtualSource(f"shards/{shard.file}", name, (length, *entry_shape), dtype)
            layout[end - length : end] = source
    file.create_virtual_dataset(name, layout, fillvalue=fill)
