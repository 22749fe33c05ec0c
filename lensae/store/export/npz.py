"""`.npz`: NumPy's own archive, uncompressed and without pickles; `about` says where the set comes from.

numpy.savez needs every array in memory at once, so each member's header and values are written here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from lensae.core.durable import new_file
from lensae.store.export._table import Table

OPEN = """\
import numpy; arrays = numpy.load({path!r}); rows = arrays["activations"]; ends = arrays["text_offsets"]
texts = [bytes(text).decode() for text in numpy.split(arrays["text_bytes"], ends[1:-1])]"""


def write(table: Table, target: Path, advance: Callable[[int], None]) -> None:
    """Write the table as `target`."""
    with new_file(target, keep=True) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, column in table.columns(advance).items():
            with _member(archive, name) as file:
                np.lib.format.write_array_header_1_0(file, _header(column.dtype, column.shape))
                column.write_to(file)
        with _member(archive, "about") as file:
            np.lib.format.write_array(file, np.array(table.about), allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # The date that ZipInfo has by itself makes equal sets equal files; 64-bit sizes are needed from 2 GiB on.
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> dict:
    return {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
