"""`.safetensors`, written tensor by tensor; the metadata's `about` says where the set comes from.

The library's own writer needs every tensor in memory at once, so the file is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lensae.core.durable import new_file
from lensae.core.safetensors_header import TensorInfo, header_bytes
from lensae.store.export._table import Table

OPEN = """\
from safetensors.numpy import load_file; arrays = load_file({path!r}); ends = arrays["text_offsets"]
texts = [arrays["text_bytes"][a:b].tobytes().decode() for a, b in zip(ends, ends[1:])]"""


def write(table: Table, target: Path, advance: Callable[[int], None]) -> None:
    """Write the table as `target`."""
    # The widest types first: every tensor then starts at a multiple of its own item size.
    columns = dict(sorted(table.columns(advance).items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    infos = {name: TensorInfo(column.dtype.name, column.shape) for name, column in columns.items()}
    with new_file(target, keep=True) as partial, open(partial, "wb") as file:
        file.write(header_bytes(infos, {"about": table.about}))
        for column in columns.values():
            column.write_to(file)
