"""A folder with two Hugging Face datasets, `rows` and `documents`, as `save_to_disk` would leave them.

rows: activation (D), token (its text), token_id, document, position, origin, char_start, char_end
documents: text, prompt, label, first_row, rows, input_ids; the `document` of a row is the number of a row here

The library can only save what it has loaded, into memory or into its cache. So the Arrow files, one per shard, and the
two JSON files that `load_from_disk` reads are written here.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lensae.core.durable import Folder, write_json
from lensae.store.export._table import Table
from lensae.store.schema import CHUNK_ROWS, ROW_COLUMNS, TEXT_COLUMNS
from lensae.store.shard import Shard

if TYPE_CHECKING:
    from datasets import Features

OPEN = """\
from datasets import load_from_disk; data = load_from_disk({path!r}); documents = data["documents"]
rows = data["rows"].with_format("numpy"); print(rows[0]["activation"], documents[int(rows[0]["document"])]["text"])"""


def write(table: Table, target: Path, advance: Callable[[int], None]) -> None:
    """Write the table as the folder `target`."""
    with Folder(target, _refuse) as folder:
        _write_dataset(folder / "rows", table, _row_features(table), lambda shard: _rows(table, shard, advance))
        _write_dataset(folder / "documents", table, _document_features(), lambda shard: _documents(table, shard))
        write_json(folder / "dataset_dict.json", {"splits": ["rows", "documents"]})


def _refuse(target: Path) -> None:
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _row_features(table: Table) -> Features:
    from datasets import Features, List, Value

    activation = List(Value(table.dtype.name), length=table.width)
    columns = {name: Value(np.dtype(kind).name) for name, kind in ROW_COLUMNS.items()}
    return Features({"activation": activation, "token": Value("string"), **columns, "document": Value("int64")})


def _document_features() -> Features:
    from datasets import Features, List, Value

    texts = {name: Value("string") for name in TEXT_COLUMNS}
    numbers = {"first_row": Value("int64"), "rows": Value("int64")}
    return Features({**texts, **numbers, "input_ids": List(Value("int32"))})


def _write_dataset(folder: Path, table: Table, features: Features, batches: Callable[[Shard], Iterator[dict]]) -> None:
    """One dataset, from the batches of columns that `batches` gives for each shard."""
    from datasets import DatasetInfo
    from pyarrow import OSFile, RecordBatch, ipc

    folder.mkdir()
    schema, count = features.arrow_schema, len(table.reader.shards)
    names = [f"data-{number:05d}-of-{count:05d}.arrow" for number in range(count)]
    for name, shard in zip(names, table.shards(), strict=True):
        with OSFile(str(folder / name), "wb") as file, ipc.new_stream(file, schema) as stream:
            for batch in batches(shard):
                stream.write_batch(RecordBatch.from_arrays([batch[field.name] for field in schema], schema=schema))
    DatasetInfo(description=table.about, features=features).write_to_directory(str(folder))
    write_json(folder / "state.json", _state(names, _fingerprint(table, folder.name)))


def _state(names: list[str], fingerprint: str) -> dict:
    return {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }


def _fingerprint(table: Table, name: str) -> str:
    """A digest of the data, by which the library keys its cache of later steps."""
    shards = [shard.sha256 for shard in table.reader.shards]
    return hashlib.sha256("\0".join([name, table.about, *shards]).encode()).hexdigest()[:16]


def _rows(table: Table, shard: Shard, advance: Callable[[int], None]) -> Iterator[dict]:
    from pyarrow import FixedSizeListArray, array

    columns = {name: shard.read(name) for name in ROW_COLUMNS}
    tokens = _tokens(shard.texts("text"), columns)
    columns["document"] = table.document_of_rows(shard)
    for start in range(0, shard.rows, CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        values = shard.read("activations", chunk)
        batch = {name: array(column[chunk]) for name, column in columns.items()}
        batch["activation"] = FixedSizeListArray.from_arrays(array(values.reshape(-1)), table.width)
        yield batch | {"token": array(tokens[chunk], "string")}
        advance(len(values))


def _tokens(texts: list[str], columns: dict[str, np.ndarray]) -> list[str]:
    spans = zip(*(columns[name].tolist() for name in ("document", "char_start", "char_end")), strict=True)
    return [texts[document][start:end] for document, start, end in spans]


def _documents(table: Table, shard: Shard) -> Iterator[dict]:
    from pyarrow import ListArray, array

    start, inputs = shard.read("documents/start"), shard.read("documents/input_start")
    batch = {name: array(shard.texts(name), "string") for name in TEXT_COLUMNS}
    batch["first_row"] = array(start[:-1] + table.first_row[shard.number])
    batch["rows"] = array(np.diff(start))
    batch["input_ids"] = ListArray.from_arrays(array(inputs, "int32"), array(shard.read("documents/input_ids")))
    yield batch
