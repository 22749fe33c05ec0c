"""What a shard holds (schema 1). T rows, N documents, S input tokens.

activations (T, D)          float16 or float32, Fletcher-32, chunks of whole rows
token_id, document, position, char_start, char_end (T,) int32     origin (T,) uint8: 0 prompt, 1 generated
documents/text, prompt, label (N,) UTF-8        documents/start (N + 1,) int64: first row of each document
documents/input_ids (S,) int32                  documents/input_start (N + 1,) int64
attrs: schema, rows, documents, hook, pass, first_document (of its pass), dropped (tokens), digest
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

SCHEMA = 1
CHUNK_ROWS = 1024
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


def shard_name(number: int) -> str:
    """The file name of shard `number`."""
    return f"{number:05d}.h5"


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
