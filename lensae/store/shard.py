"""One shard: built in memory, written in one piece, read back by slices.

A shard's file image is made in memory first, so writing it is a plain write of bytes: a full disk or a kill can
only leave a `.partial` file behind, never a half-written shard under its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from lensae.errors import DamagedError
from lensae.records import CapturedDocument, StoredDocument, TokenSpan
from lensae.store.schema import CHUNK_ROWS, NUL, ROW_COLUMNS, SCHEMA, TEXT_COLUMNS, content_digest


def image(documents: Sequence[CapturedDocument], hook: str, dtype: str, attrs: dict) -> tuple[bytes, int]:
    """The bytes of the HDF5 file for `documents` at `hook`, and its number of rows."""
    arrays, texts = _columns(documents, hook, dtype)
    rows = arrays["activations"].shape[0]
    file = h5py.File("shard", "w", driver="core", backing_store=False, libver=("v110", "v110"))
    with file:
        for name, array in arrays.items():
            _create(file, name, array)
        for name, column in texts.items():
            file.create_dataset(name, data=column, dtype=h5py.string_dtype("utf-8"), track_times=False)
        file.attrs.update(
            {"schema": SCHEMA, "rows": rows, "documents": len(documents), "hook": hook, **attrs}
            | {"dropped": sum(document.dropped for document in documents)}
            | {"digest": content_digest(arrays, texts)}
        )
        file.flush()
        return file.id.get_file_image(), rows


def _columns(documents, hook: str, dtype: str) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    lengths = [len(d.token_id) for d in documents]
    arrays = {"activations": np.concatenate([d.activations[hook] for d in documents]).astype(dtype)}
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


def _create(file: h5py.File, name: str, array: np.ndarray) -> None:
    rows = min(len(array), CHUNK_ROWS if array.ndim == 2 else 16 * CHUNK_ROWS)
    chunked = {"chunks": (rows, *array.shape[1:]), "fletcher32": True} if rows else {}
    file.create_dataset(name, data=array, track_times=False, **chunked)


class Shard:
    """An open shard. Every read that fails names the file; use it as a context manager."""

    def __init__(self, path: Path, number: int = 0):
        self.path, self.number = path, number
        try:
            self.file = h5py.File(path, "r")
            self.attrs = dict(self.file.attrs)
            self.rows, self.n_documents = int(self.attrs["rows"]), int(self.attrs["documents"])
        except (OSError, KeyError) as error:
            raise self._damaged(error) from error
        if int(self.attrs.get("schema", 0)) > SCHEMA:
            raise DamagedError(f"{path} was written by a newer lensae", "upgrade lensae to read it")

    def _damaged(self, error: Exception) -> DamagedError:
        reason = "it is cut short or not HDF5" if "truncated" in str(error) or "signature" in str(error) else str(error)
        if isinstance(error, FileNotFoundError):
            reason = "it is missing"
        return DamagedError(
            f"shard {self.path} cannot be read: {reason}", "python main.py store verify names every fault"
        )

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_exc) -> None:
        self.file.close()

    def read(self, name: str, where=...) -> np.ndarray:
        """A slice of one dataset."""
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
        """The digest of what the shard holds now, to be compared with its attribute."""
        names = ["activations", *ROW_COLUMNS, "documents/start", "documents/input_ids", "documents/input_start"]
        arrays = {name: self.read(name) for name in names}
        return content_digest(arrays, {f"documents/{name}": self.texts(name) for name in TEXT_COLUMNS})
