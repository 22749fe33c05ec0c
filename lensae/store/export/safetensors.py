"""`.safetensors`: a length, a JSON header and the tensors one after another, as
https://huggingface.co/docs/safetensors lays it down; the metadata's `about` says where the set comes from.

The library's own writer wants every tensor in memory at once, so the file is written here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lensae.core.durable import new_file
from lensae.store.export._table import Column, Table

KINDS = {"float16": "F16", "float32": "F32", "int32": "I32", "int64": "I64", "uint8": "U8"}
OPEN = """\
from safetensors.numpy import load_file; arrays = load_file({path!r}); ends = arrays["text_offsets"]
texts = [arrays["text_bytes"][a:b].tobytes().decode() for a, b in zip(ends, ends[1:])]"""


def write(table: Table, target: Path, advance: Callable[[int], None]) -> None:
    """Write the table as `target`."""
    # The widest types first: every tensor then starts at a multiple of its own item size.
    columns = sorted(table.columns(advance).items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    with new_file(target, keep=True) as partial, open(partial, "wb") as file:
        header = _header(columns, table.about)
        file.write(len(header).to_bytes(8, "little") + header)
        for _name, column in columns:
            column.write_to(file)


def _header(columns: list[tuple[str, Column]], about: str) -> bytes:
    ends = np.cumsum([0] + [column.nbytes for _name, column in columns]).tolist()
    header: dict = {"__metadata__": {"about": about}}
    for (name, column), start, end in zip(columns, ends, ends[1:], strict=False):
        header[name] = {"dtype": KINDS[column.dtype.name], "shape": list(column.shape), "data_offsets": [start, end]}
    data = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return data + b" " * (-len(data) % 8)
