"""Checking a set: every byte of every shard, and that rows, documents and texts fit together."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensae.core.paths import SetEntry
from lensae.store.schema import ROW_COLUMNS
from lensae.store.shard import Shard

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Fault:
    """Something wrong with one shard, down to the dataset and chunk where that can be told."""

    shard: str
    where: str
    what: str


def verify(entry: SetEntry) -> Iterator[tuple[str, list[Fault]]]:
    """Check each shard in turn; yields (file name, its faults) so that progress can be shown."""
    listed = {shard.file for shard in entry.manifest.shards}
    for shard in entry.manifest.shards:
        yield shard.file, _check(entry, shard)
    for path in sorted(entry.path.glob("shards/*.h5")):
        if path.name not in listed:
            yield path.name, [Fault(path.name, "manifest", "not listed; the next collect takes it in")]


def _check(entry: SetEntry, listed: dict) -> list[Fault]:
    name = listed.file
    path = entry.path / "shards" / name
    if not path.is_file():
        return [Fault(name, "file", "missing")]
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest == listed.sha256:
        return [] if _row_count(path) == listed.rows else [Fault(name, "manifest", "wrong row count")]
    return _located(path, name) or [Fault(name, "file", "bytes differ from those written, in HDF5's own structures")]


def _located(path: Path, name: str) -> list[Fault]:
    """The faults of a damaged shard, found in a process of its own: a flipped bit in HDF5's structures can make the
    library fail in any way, and even turn in a circle for ever."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_faults, args=(path, name, sender), daemon=True)
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(PATIENCE_S) else []
    except EOFError:  # the library took the process down with it
        found = []
    process.kill()
    process.join()
    receiver.close()
    return found


def _send_faults(path: Path, name: str, sender) -> None:
    try:
        with Shard(path) as shard:
            found = list(_content_faults(shard, name))
    except Exception as error:
        found = [Fault(name, "file", str(error))]
    sender.send(found)


def _row_count(path) -> int:
    with Shard(path) as shard:
        return shard.rows


def _content_faults(shard: Shard, name: str) -> Iterator[Fault]:
    unreadable = [Fault(name, where, "checksum mismatch") for where in _bad_chunks(shard)]
    yield from unreadable
    if unreadable:
        return
    if shard.digest() != shard.attrs["digest"]:
        yield Fault(name, "content", "digest mismatch")
    yield from _map_faults(shard, name)


def _bad_chunks(shard: Shard) -> Iterator[str]:
    """Every chunk whose Fletcher-32 does not hold."""
    for dataset in ["activations", *ROW_COLUMNS, "documents/start", "documents/input_ids", "documents/input_start"]:
        data = shard.file[dataset]
        if data.chunks is None:  # empty
            continue
        for start in range(0, len(data), data.chunks[0]):
            try:
                data[start : start + data.chunks[0]]
            except OSError:
                yield f"{dataset}, chunk at row {start}"


def _map_faults(shard: Shard, name: str) -> Iterator[Fault]:
    """Rows and documents must agree, and every token must lie inside its document's text."""
    start = shard.read("documents/start")
    if start[0] != 0 or start[-1] != shard.rows or (np.diff(start) < 0).any():
        yield Fault(name, "documents/start", "does not cover the rows")
        return
    document = shard.read("document")
    if (document != np.repeat(np.arange(len(start) - 1), np.diff(start))).any():
        yield Fault(name, "document", "does not agree with documents/start")
        return
    length = np.array([len(text) for text in shard.texts("text")])
    if (shard.read("char_end") > length[document]).any() or (shard.read("char_start") < 0).any():
        yield Fault(name, "char_end", "reaches past the end of its document")
