"""What a shard holds (schema 1). T rows, N documents, S input tokens.

activations (T, D)          float16 or float32, Fletcher-32, chunks of `chunk_rows` whole rows, perhaps compressed
token_id, document, position, char_start, char_end (T,) int32     origin (T,) uint8: 0 prompt, 1 generated
documents/text, prompt, label (N,) UTF-8        documents/start (N + 1,) int64: first row of each document
documents/input_ids (S,) int32                  documents/input_start (N + 1,) int64
attrs: schema, rows, documents, hook, pass, first_document (of its pass), dropped (tokens), digest
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from lensae.core.manifest import NEWEST

SCHEMA = NEWEST
CHUNK_ROWS = 1024  # rows read at once; a whole number of chunks
CHUNK_BYTES = 2**20  # what a chunk of activations takes at most: see experiments/benchmarks/storage.py
ROW_COLUMNS = {
    "token_id": np.int32,
    "document": np.int32,
    "position": np.int32,
    "char_start": np.int32,
    "char_end": np.int32,
    "origin": np.uint8,
}
TEXT_COLUMNS = ("text", "prompt", "label")
NUL = "\u2400"  # stands for a NUL character, which HDF5 strings cannot hold; the token ids keep the original
DTYPES = ("float16", "float32")
# Lossless, each after a byte shuffle, by measurement (experiments/benchmarks/storage.py): the arguments of
# h5py's create_dataset. zstd (filter 32015, level 1) is of hdf5plugin; gzip is slow but in every HDF5.
COMPRESSIONS: dict[str, dict] = {
    "zstd": {"compression": 32015, "compression_opts": (1,), "shuffle": True},
    "gzip": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
}
RECOMMENDED_COMPRESSION = "zstd"


def chunk_rows(row_bytes: int) -> int:
    """Rows in a chunk of activations: the power of two that fits CHUNK_BYTES, at most CHUNK_ROWS."""
    fitting = max(1, CHUNK_BYTES // max(1, row_bytes))
    return min(CHUNK_ROWS, 2 ** (fitting.bit_length() - 1))


def shard_name(number: int, rank: int | None = None) -> str:
    """The file name of shard `number`, of process `rank` where several write."""
    return f"{number:05d}.h5" if rank is None else f"{number:05d}-{rank}.h5"


def content_digest(arrays: Mapping[str, np.ndarray], texts: Mapping[str, list[str]]) -> str:
    """sha256 over every dataset's name, shape and bytes, independent of how HDF5 lays them out."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.shape}{array.dtype.str}".encode())
        digest.update(array.view(np.uint8).reshape(-1).data)
    for name in sorted(texts):
        digest.update(name.encode())
        for text in texts[name]:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
