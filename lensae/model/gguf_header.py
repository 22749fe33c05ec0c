"""Checking a GGUF file before a library reads it: what its header declares must fit into the file.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian: magic, version, number of tensors,
number of metadata entries; the entries (key, type, value); the tensors' names, dimensions, types and offsets; padding;
the tensors' data. Readers trust the numbers in it, so a damaged file can make them loop or allocate without end.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from lensae.core.errors import UserError

MAGIC, VERSIONS = b"GGUF", (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
# Metadata that sizes a model's weights, each key after the name of the architecture.
WIDTHS = ("embedding_length", "vocab_size")
OTHER_SIZES = ("feed_forward_length", "expert_count", "attention.head_count")


@dataclass
class Header:
    """What the header says: single values of the metadata, and each tensor's dimensions."""

    metadata: dict[str, object] = field(default_factory=dict)
    dimensions: dict[str, tuple[int, ...]] = field(default_factory=dict)


def check_gguf(path: Path) -> Header:
    """Read the header of a GGUF file; raises UserError naming what cannot be right."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Cursor(data).header()
    except ValueError as error:  # an empty file cannot be mapped either
        what = "it is empty" if not path.stat().st_size else error
        raise UserError(f"{path} is not a usable GGUF file: {what}", "download or convert it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return header


class _Cursor:
    """Reads a header from front to back; raises ValueError for numbers that do not fit into the file."""

    def __init__(self, data: mmap.mmap):
        self.data, self.position, self.size = data, 0, len(data)

    def header(self) -> Header:
        if self.data[:4] != MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        self.position = 4
        version = self._number("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, not {VERSIONS[0]} or {VERSIONS[1]}")
        tensors, entries = self._number("Q"), self._number("Q")
        self._check_room(entries * 13 + tensors * 24, f"{tensors:,} tensors and {entries:,} entries of metadata")
        header = Header()
        for _ in range(entries):
            key = self._string()
            header.metadata[key] = self._value(self._number("I"), key)
        ends = [self._tensor(header) for _ in range(tensors)]
        self._check_data(header, max(ends, default=0))
        _check_sizes(header)
        return header

    def _check_room(self, size: int, what: str) -> None:
        if size > self.size - self.position:
            raise ValueError(f"it is cut short or damaged ({what} do not fit into its {self.size:,} bytes)")

    def _number(self, code: str) -> Any:
        size = struct.calcsize(code)
        self._check_room(size, "the header")
        [value] = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += size
        return value

    def _string(self) -> str:
        length = self._number("Q")
        self._check_room(length, f"a text of {length:,} bytes")
        text = self.data[self.position : self.position + length]
        self.position += length
        return text.decode("utf-8", "replace")

    def _value(self, kind: int, key: str) -> object:
        """The value of an entry; None for an array, which is passed over."""
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            raise ValueError(f"'{key}' is of type {kind}, which is unknown")
        element, count = self._number("I"), self._number("Q")
        if element in SCALARS:
            size = count * struct.calcsize(SCALARS[element])
            self._check_room(size, f"{count:,} values of '{key}'")
            self.position += size
        elif element == STRING:
            self._check_room(count * 8, f"{count:,} texts of '{key}'")
            for _ in range(count):
                self._skip_string(key)
        else:
            raise ValueError(f"'{key}' is an array of type {element}, which is unknown")
        return None

    def _skip_string(self, key: str) -> None:
        length = self._number("Q")
        self._check_room(length, f"a text of {length:,} bytes in '{key}'")
        self.position += length

    def _tensor(self, header: Header) -> int:
        """Read one tensor's description; returns where its data end, counted from the first tensor's data."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, count = self._string(), self._number("I")
        if not 1 <= count <= MAX_DIMENSIONS:
            raise ValueError(f"'{name}' has {count} dimensions")
        dimensions = tuple(self._number("Q") for _ in range(count))
        kind, offset = self._number("I"), self._number("Q")
        if kind not in list(GGMLQuantizationType):
            raise ValueError(f"'{name}' is of type {kind}, which is unknown")
        if name in header.dimensions or not all(dimensions):
            raise ValueError(f"'{name}' is there twice or is empty")
        header.dimensions[name] = dimensions
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        return offset + -(-prod(dimensions) // block) * block_bytes

    def _check_data(self, header: Header, length: int) -> None:
        alignment = header.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment}")
        self.position += -self.position % alignment
        self._check_room(length, f"{length:,} bytes of tensors")


def _check_sizes(header: Header) -> None:
    """Raise ValueError for a size in the metadata that the tensors do not have, and for a missing architecture."""
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("it does not name the model's architecture")
    if not header.dimensions:
        raise ValueError("it holds no tensors")
    sizes = {size for dimensions in header.dimensions.values() for size in dimensions}
    allowed = dict.fromkeys(WIDTHS, sizes) | {name: range(1, max(sizes) + 1) for name in OTHER_SIZES}
    allowed["block_count"] = range(1, len(header.dimensions) + 1)
    for name, values in allowed.items():
        value = header.metadata.get(f"{architecture}.{name}")
        if value is not None and value not in values:
            raise ValueError(f"it declares {architecture}.{name} {value}, which its tensors do not have")
