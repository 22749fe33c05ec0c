"""Checking shards: every byte, and that rows, documents and texts fit together."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lensae.core.manifest import ShardRecord
from lensae.core.paths import SetEntry
from lensae.core.records import Fault
from lensae.store.schema import ROW_COLUMNS
from lensae.store.shard import Shard

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


PATIENCE_S = 20.0


def verify(entry: SetEntry) -> Iterator[tuple[str, list[Fault]]]:
    """Check each shard; yields (file name, its faults), so that progress can be shown."""
    listed = {shard.file for shard in entry.manifest.shards}
    for shard in entry.manifest.shards:
        yield shard.file, _check(entry, shard)
    for path in sorted(entry.path.glob("shards/*.h5")):
        if path.name not in listed:
            yield path.name, [_fault(path.name, "manifest", "not listed; the next collect lists it")]


def _fault(name: str, where: str, what: str) -> Fault:
    return Fault(f"shards/{name}", where, what)


def _check(entry: SetEntry, listed: ShardRecord) -> list[Fault]:
    name = listed.file
    path = entry.path / "shards" / name
    if not path.is_file():
        return [_fault(name, "file", "missing")]
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest == listed.sha256:
        return [] if _row_count(path) == listed.rows else [_fault(name, "manifest", "wrong row count")]
    return _located(path, name) or [_fault(name, "file", "bytes differ from those written, in HDF5's own structures")]


def _located(path: Path, name: str) -> list[Fault]:
    """The faults of a damaged shard, found by a separate process: a flipped bit in HDF5's structures can make the
    library crash or loop for ever."""
    context: Any = multiprocessing.get_context(_start_method())  # its stubs know no Process
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_faults, args=(path, name, sender), daemon=True)
    process.start()
    sender.close()
    try:
        faults = receiver.recv() if receiver.poll(PATIENCE_S) else []
    except EOFError:  # the process crashed
        faults = []
    process.kill()
    process.join()
    receiver.close()
    return faults


def _start_method() -> str:
    """fork on Linux, as it takes milliseconds; spawn where fork is missing (Windows) or unsafe (macOS)."""
    return "fork" if sys.platform == "linux" else "spawn"


def _send_faults(path: Path, name: str, sender: Connection) -> None:
    try:
        with Shard(path) as shard:
            faults = list(_content_faults(shard, name))
    except Exception as error:
        faults = [_fault(name, "file", str(error))]
    sender.send(faults)


def _row_count(path: Path) -> int:
    with Shard(path) as shard:
        return shard.rows


def _content_faults(shard: Shard, name: str) -> Iterator[Fault]:
    unreadable = [_fault(name, where, "checksum mismatch") for where in _bad_chunks(shard)]
    yield from unreadable
    if unreadable:
        return
    if shard.digest() != shard.attrs["digest"]:
        yield _fault(name, "content", "digest mismatch")
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
        yield _fault(name, "documents/start", "does not cover the rows")
        return
    document = shard.read("document")
    if (document != np.repeat(np.arange(len(start) - 1), np.diff(start))).any():
        yield _fault(name, "document", "does not agree with documents/start")
        return
    length = np.array([len(text) for text in shard.texts("text")])
    if (shard.read("char_end") > length[document]).any() or (shard.read("char_start") < 0).any():
        yield _fault(name, "char_end", "reaches past the end of its document")
