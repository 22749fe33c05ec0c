"""One shard: built in memory, written in one piece, read back by slices.

A shard's file image is made in memory first, so writing it is a plain write of bytes: a full disk or a kill can
only leave a `.partial` file behind, never a half-written shard under its own name.

Shapes: R rows of some documents, D width of the hook.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lensae.core.errors import DamagedError, LensaeError, unknown
from lensae.core.program import command
from lensae.core.records import CapturedDocument, StoredDocument, TokenSpan
from lensae.store.memory_file import MemoryFile
from lensae.store.schema import (
    CHUNK_ROWS,
    COMPRESSIONS,
    NUL,
    ROW_COLUMNS,
    SCHEMA,
    TEXT_COLUMNS,
    chunk_rows,
    content_digest,
)

SERIAL_ELEMENTS = 32_768  # torch uses several threads for larger arrays


def image(
    documents: Sequence[CapturedDocument], hook: str, dtype: str, attrs: dict, compress: str | None = None
) -> tuple[memoryview, int]:
    """The bytes of the HDF5 file for `documents` at `hook`, and its number of rows.

    `compress` is one of lensae.store.schema.COMPRESSIONS and acts on the activations; None stores them as they are.
    Equal documents give equal bytes. Threads may call this at once. Raises LensaeError without hdf5plugin for zstd.
    """
    layout = _compression(compress)
    arrays, texts = _columns(documents, hook, dtype)
    rows = arrays["activations"].shape[0]
    memory = MemoryFile(sum(array.nbytes for array in arrays.values()))
    with h5py.File(memory, "w", libver=("v110", "v110")) as file:
        for name, array in arrays.items():
            _create(file, name, array, layout if name == "activations" else {})
        for name, column in texts.items():
            file.create_dataset(name, data=column, dtype=h5py.string_dtype("utf-8"), track_times=False)
        file.attrs.update(
            {"schema": SCHEMA, "rows": rows, "documents": len(documents), "hook": hook, **attrs}
            | {"dropped": sum(document.dropped for document in documents)}
            | {"digest": content_digest(arrays, texts)}
        )
    return memory.content(), rows


def _columns(
    documents: Sequence[CapturedDocument], hook: str, dtype: str
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    lengths = [len(d.token_id) for d in documents]
    arrays = {"activations": _concatenated([d.activations[hook] for d in documents], np.dtype(dtype))}
    for name, kind in ROW_COLUMNS.items():
        if name == "document":
            arrays[name] = np.repeat(np.arange(len(documents), dtype=kind), lengths)
        else:
            arrays[name] = np.concatenate([getattr(d, name) for d in documents]).astype(kind)
    arrays["documents/start"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    arrays["documents/input_ids"] = np.concatenate([d.input_ids for d in documents]).astype(np.int32)
    arrays["documents/input_start"] = np.cumsum([0] + [len(d.input_ids) for d in documents]).astype(np.int64)
    texts = {f"documents/{name}": [getattr(d, name).replace("\0", NUL) for d in documents] for name in TEXT_COLUMNS}
    return arrays, texts


def _concatenated(arrays: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """The arrays (R, D) one after another as `dtype`, without copies of the whole in between."""
    all_RD = np.empty((sum(len(rows_RD) for rows_RD in arrays), arrays[0].shape[1]), dtype)
    end = 0
    for rows_RD in arrays:
        end += len(rows_RD)
        convert(rows_RD, all_RD[end - len(rows_RD) : end])
    return all_RD


def convert(source_RD: np.ndarray, target_RD: np.ndarray) -> None:
    """target[...] = source, rounding to nearest even; float32 to float16 by torch where it is loaded.

    torch converts many times faster than numpy. A running model has loaded it, so it is never loaded for this, and
    SERIAL_ELEMENTS keeps each call below the size at which torch would take threads away from the model.
    """
    torch = sys.modules.get("torch")
    halving = (source_RD.dtype, target_RD.dtype) == (np.float32, np.float16)
    if torch is None or not halving or not source_RD.flags.writeable:
        target_RD[...] = source_RD
        return
    step = max(1, SERIAL_ELEMENTS // max(1, source_RD.shape[1]))
    source, target = torch.from_numpy(source_RD), torch.from_numpy(target_RD)
    for start in range(0, len(source), step):
        target[start : start + step].copy_(source[start : start + step])


def _create(file: h5py.File, name: str, array: np.ndarray, compression: dict) -> None:
    rows = min(len(array), chunk_rows(array.strides[0]) if array.ndim == 2 else 16 * CHUNK_ROWS)
    chunked = {"chunks": (rows, *array.shape[1:]), "fletcher32": True, **compression} if rows else {}
    file.create_dataset(name, data=array, track_times=False, **chunked)


def _compression(name: str | None) -> dict:
    """The arguments of h5py's create_dataset for the compression `name`, whose HDF5 filter is registered."""
    if name is None:
        return {}
    if name not in COMPRESSIONS:
        raise unknown("compression", name, COMPRESSIONS)
    settings = COMPRESSIONS[name]
    if isinstance(settings["compression"], int):
        _register_filter(settings["compression"], f"compressing with {name}")
    return settings


def _register_filter(code: int, purpose: str) -> bool:
    """Make HDF5's filter number `code` available if it can be; returns whether it is.

    Raises LensaeError, which names the `purpose`, when hdf5plugin might have it and is not installed.
    """
    if h5py.h5z.filter_avail(code):
        return True
    try:
        import hdf5plugin  # noqa: F401  (importing it registers its filters)
    except ImportError:
        raise LensaeError(f"{purpose} needs hdf5plugin, which is not installed", "pip install hdf5plugin") from None
    return bool(h5py.h5z.filter_avail(code))


class Shard:
    """An open shard. Every read that fails names the file; use it as a context manager."""

    def __init__(self, path: Path, number: int = 0):
        self.path, self.number = path, number
        try:
            self.file = h5py.File(path, "r")
            self.attrs = dict(self.file.attrs)
            self.rows, self.n_documents = int(self.attrs["rows"]), int(self.attrs["documents"])
            self._need_filters(self.file["activations"].id.get_create_plist())
        except (OSError, KeyError) as error:
            raise self._damaged(error) from error
        if int(self.attrs.get("schema", 0)) > SCHEMA:
            raise DamagedError(f"{path} was written by a newer lensae", "upgrade lensae to read it")

    def _need_filters(self, layout: h5py.h5p.PropDCID) -> None:
        """Raises LensaeError when the activations are compressed by what is not installed."""
        for code, *_rest in (layout.get_filter(i) for i in range(layout.get_nfilters())):
            if not _register_filter(code, f"reading {self.path}, which is compressed,"):
                raise DamagedError(f"{self.path} is compressed by HDF5 filter {code}, which is unknown here")

    def _damaged(self, error: Exception) -> DamagedError:
        reason = "it is cut short or not HDF5" if "truncated" in str(error) or "signature" in str(error) else str(error)
        if isinstance(error, FileNotFoundError):
            reason = "it is missing"
        return DamagedError(
            f"shard {self.path} cannot be read: {reason}", f"{command('store verify')} names every fault"
        )

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.file.close()

    def read(self, name: str, where: Any = ...) -> np.ndarray:
        """One dataset, or the part of it that `where` selects, as in h5py."""
        try:
            return self.file[name][where]
        except (OSError, KeyError) as error:
            raise self._damaged(error) from error

    def texts(self, name: str) -> list[str]:
        """A whole text column of the documents."""
        try:
            return list(self.file[f"documents/{name}"].asstr()[...])
        except (OSError, KeyError, UnicodeDecodeError) as error:
            raise self._damaged(error) from error

    def text(self, name: str, index: int) -> str:
        """One document's entry in a text column."""
        try:
            return self.file[f"documents/{name}"].asstr()[index]
        except (OSError, KeyError, UnicodeDecodeError) as error:
            raise self._damaged(error) from error

    def span(self, row: int) -> TokenSpan:
        """The token under `row`."""
        values = {name: int(self.read(name, row)) for name in ROW_COLUMNS}
        values["start"], values["end"] = values.pop("char_start"), values.pop("char_end")
        return TokenSpan(**values)

    def document(self, index: int) -> StoredDocument:
        """One document."""
        start, end = (int(v) for v in self.read("documents/start", slice(index, index + 2)))
        first, last = (int(v) for v in self.read("documents/input_start", slice(index, index + 2)))
        text, prompt, label = (self.text(name, index) for name in TEXT_COLUMNS)
        ids = self.read("documents/input_ids", slice(first, last))
        return StoredDocument(self.number, index, text, prompt, label, (start, end), ids)

    def digest(self) -> str:
        """The digest of the shard's present content, to be compared with its attribute `digest`."""
        names = ["activations", *ROW_COLUMNS, "documents/start", "documents/input_ids", "documents/input_start"]
        arrays = {name: self.read(name) for name in names}
        return content_digest(arrays, {f"documents/{name}": self.texts(name) for name in TEXT_COLUMNS})
