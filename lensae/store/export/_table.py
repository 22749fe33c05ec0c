"""A set as one table of arrays, which every format writes, read shard by shard so that memory does not grow with it.

Shapes: T rows, D width, N documents, S input tokens, over all shards; C bytes of a text column as UTF-8.

activations (T, D)    token_id, position, char_start, char_end (T,) int32    origin (T,) uint8    document (T,) int64
document_start (N + 1,) int64: first row of each document     input_ids (S,) int32    input_start (N + 1,) int64
text, prompt, label: <name>_bytes (C,) uint8 and <name>_offsets (N + 1,) int64, so that entry i is
<name>_bytes[offsets[i]:offsets[i + 1]]. Documents and rows are numbered through all shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from lensae.core.errors import DamagedError
from lensae.core.program import command
from lensae.store.reader import SetReader
from lensae.store.schema import CHUNK_ROWS, ROW_COLUMNS, TEXT_COLUMNS
from lensae.store.shard import Shard


@dataclass(frozen=True)
class Column:
    """One array of the table: `blocks()` gives its values in order, in blocks of bounded size."""

    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes of all its values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def write_to(self, file: IO[bytes]) -> None:
        """Write its values in C order, little-endian; raises DamagedError when their number is not the shape's."""
        missing = self.nbytes
        for block in self.blocks():
            file.write(np.ascontiguousarray(block, self.dtype).tobytes())
            missing -= block.size * self.dtype.itemsize
        if missing:
            what = "the shards do not hold as many values as they declare"
            raise DamagedError(what, f"{command('store verify')} names every fault")


class Table:
    """The arrays of a set; constructing one reads every shard's documents, so that a damaged shard is named at once."""

    def __init__(self, reader: SetReader):
        self.reader, self.rows, self.width = reader, reader.rows, reader.width
        self.dtype = np.dtype(reader.entry.manifest.dtype)
        documents, inputs, self._text_bytes = [], 0, dict.fromkeys(TEXT_COLUMNS, 0)
        for shard in self.shards():
            documents.append(shard.n_documents)
            inputs += int(shard.read("documents/input_start", -1))
            for name in TEXT_COLUMNS:
                self._text_bytes[name] += sum(map(len, encoded(shard, name)))
        self.first_document = np.concatenate([[0], np.cumsum(documents)]).astype(np.int64)
        self.first_row = np.cumsum([0] + [shard.rows for shard in reader.shards])
        self.documents, self._inputs = sum(documents), inputs

    @property
    def about(self) -> str:
        """The provenance of the set, as JSON."""
        manifest, model = self.reader.entry.manifest, self.reader.entry.manifest.model
        facts = {"set": self.reader.entry.name, "model": model.name, "weights_sha256": model.weights_sha256}
        facts |= {key: getattr(manifest, key) for key in ("hook", "width", "dtype", "versions")}
        return json.dumps(facts, ensure_ascii=False)

    def shards(self) -> Iterator[Shard]:
        """Every shard in order, open until the next one is asked for."""
        for number in range(len(self.reader.shards)):
            with self.reader.shard(number) as shard:
                yield shard

    def columns(self, advance: Callable[[int], None]) -> dict[str, Column]:
        """Every array by its name; `advance` is called with the number of rows that were read."""
        columns = {"activations": self._column((self.rows, self.width), self.dtype, self._activations(advance))}
        for name, kind in ROW_COLUMNS.items():
            kind = np.int64 if name == "document" else kind
            columns[name] = self._column((self.rows,), kind, self._row_column(name))
        columns["document_start"] = self._starts("documents/start")
        columns["input_ids"] = self._column(
            (self._inputs,), np.int32, lambda shard: [shard.read("documents/input_ids")]
        )
        columns["input_start"] = self._starts("documents/input_start")
        for name in TEXT_COLUMNS:
            columns |= self._text(name)
        return columns

    def _column(
        self, shape: tuple[int, ...], dtype: DTypeLike, blocks_of: Callable[[Shard], Iterable[np.ndarray]]
    ) -> Column:
        return Column(np.dtype(dtype), shape, lambda: (block for shard in self.shards() for block in blocks_of(shard)))

    def _activations(self, advance: Callable[[int], None]) -> Callable[[Shard], Iterator[np.ndarray]]:
        def blocks_of(shard: Shard) -> Iterator[np.ndarray]:
            for start in range(0, shard.rows, CHUNK_ROWS):
                block = shard.read("activations", slice(start, start + CHUNK_ROWS))
                yield block
                advance(len(block))

        return blocks_of

    def _row_column(self, name: str) -> Callable[[Shard], Iterable[np.ndarray]]:
        if name == "document":
            return lambda shard: [self.document_of_rows(shard)]
        return lambda shard: [shard.read(name)]

    def document_of_rows(self, shard: Shard) -> np.ndarray:
        """The shard's `document`, numbered through all shards (int64)."""
        return shard.read("document") + self.first_document[shard.number]

    def _starts(self, name: str) -> Column:
        return self._offsets(lambda shard: np.diff(shard.read(name)))

    def _text(self, name: str) -> dict[str, Column]:
        def data(shard: Shard) -> list[np.ndarray]:
            return [np.frombuffer(b"".join(encoded(shard, name)), np.uint8)]

        offsets = self._offsets(lambda shard: np.array([len(text) for text in encoded(shard, name)], np.int64))
        return {f"{name}_bytes": self._column((self._text_bytes[name],), np.uint8, data), f"{name}_offsets": offsets}

    def _offsets(self, lengths: Callable[[Shard], np.ndarray]) -> Column:
        """Where each document begins, and where the last one ends (N + 1,), from the documents' lengths."""

        def blocks() -> Iterator[np.ndarray]:
            end = np.zeros(1, np.int64)
            yield end
            for shard in self.shards():
                ends = end[-1] + np.cumsum(lengths(shard))
                yield ends
                end = ends if len(ends) else end

        return Column(np.dtype(np.int64), (self.documents + 1,), blocks)


def encoded(shard: Shard, name: str) -> list[bytes]:
    """A text column of a shard as UTF-8."""
    return [text.encode() for text in shard.texts(name)]
