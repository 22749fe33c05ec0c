"""Two sets of the same tokens at different hooks: rows belong together by number, wherever the shards are cut."""

from __future__ import annotations

import hashlib

import numpy as np

from lensae.errors import UserError
from lensae.store.reader import SetReader

TOKEN_COLUMNS = ("token_id", "position", "documents/input_ids", "documents/start", "documents/input_start")


def check_same_tokens(reader: SetReader, other: SetReader) -> None:
    """Raise UserError unless the two sets hold the same tokens of the same documents in the same order."""
    what = f"rows: {reader.rows} and {other.rows}" if reader.rows != other.rows else ""
    if not what:
        digests = zip(TOKEN_COLUMNS, _token_digests(reader), _token_digests(other), strict=True)
        what = ", ".join(name for name, here, there in digests if here != there)
    if what:
        model, hooks = reader.entry.manifest["model"]["name"], [r.entry.manifest["hook"] for r in (reader, other)]
        raise UserError(
            f"{reader.entry.name} and {other.entry.name} do not hold the same tokens ({what})",
            f"collect both at once: python main.py collect {model} --hook {hooks[0]} --hook {hooks[1]}",
        )


def _token_digests(reader: SetReader) -> list[str]:
    """sha256 of each column over all shards, wherever they are cut (of a column of starts, of the lengths)."""
    digests = [hashlib.sha256() for _ in TOKEN_COLUMNS]
    for number in range(len(reader.shards)):
        with reader.shard(number) as shard:
            for name, digest in zip(TOKEN_COLUMNS, digests, strict=True):
                column = shard.read(name)
                digest.update(np.ascontiguousarray(np.diff(column) if name.endswith("start") else column).data)
    return [digest.hexdigest() for digest in digests]
