"""index: every feature of an SAE over every row of its set, as an inverted file with tables of tokens and labels."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensae.durable import read_json, write_json
from lensae.errors import DamagedError, LensaeError, UserError
from lensae.index.build import ShardRecord, build_index
from lensae.index.manifest import out_of_date
from lensae.index.query import Index
from lensae.index.tables import ShardColumns
from lensae.index.verify import verify_index
from lensae.paths import SaeEntry, SetEntry, find_pair
from lensae.stages.progress import Progress, Silent
from lensae.store.reader import SetReader
from lensae.store.schema import CHUNK_ROWS

READ_BYTES = 8 * 2**20  # of activations that are read and encoded at once
WEIGHTS_STAMP = "weights.json"


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What the index came to; `encoded` counts the rows that this run had to encode."""

    set_name: str
    sae_name: str
    rows: int
    features: int
    alive: int
    postings: int
    encoded: int
    segments: int
    seconds: float


class SetSource:
    """The rows and documents of a set, as an index is built from them."""

    def __init__(self, reader: SetReader):
        self.reader = reader

    def activations(self, number: int) -> Iterator[np.ndarray]:
        """The activations of a shard in order, some thousand rows at a time, in the type they are stored in."""
        with self.reader.shard(number) as shard:
            row_bytes = shard.file["activations"].dtype.itemsize * self.reader.width
            rows = max(1, READ_BYTES // (row_bytes * CHUNK_ROWS)) * CHUNK_ROWS
            for start in range(0, max(1, shard.rows), rows):
                yield shard.read("activations", slice(start, start + rows))

    def columns(self, number: int) -> ShardColumns:
        """What a shard says of its rows and documents."""
        with self.reader.shard(number) as shard:
            return ShardColumns(
                token_id_T=shard.read("token_id"),
                document_T=shard.read("document"),
                position_T=shard.read("position"),
                char_start_T=shard.read("char_start"),
                char_end_T=shard.read("char_end"),
                input_ids_S=shard.read("documents/input_ids"),
                input_start_N1=shard.read("documents/input_start"),
                texts=shard.texts("text"),
                labels=shard.texts("label"),
            )


def check_match(entry: SetEntry, sae_entry: SaeEntry, cfg: dict) -> None:
    """Raise UserError when the SAE was not trained on this set's model and hook."""
    model = entry.manifest["model"]
    metadata = cfg.get("metadata", {})
    if int(cfg["d_in"]) != int(entry.manifest["width"]):
        raise UserError(
            f"SAE '{sae_entry.name}' takes {cfg['d_in']} dimensions, {entry.name} has {entry.manifest['width']}",
            "choose the set it was trained on with --set",
        )
    facts = (
        ("model", metadata.get("model_weights_sha256"), model["weights_sha256"]),
        ("hook", metadata.get("hook_name"), entry.manifest["hook"]),
    )
    for what, of_sae, of_set in facts:
        if of_sae and of_sae != of_set:
            name = metadata.get("model_name") if what == "model" else of_sae
            raise UserError(
                f"SAE '{sae_entry.name}' was trained on another {what} ({name}) than the set {entry.name} holds",
                "choose the set it was trained on with --set",
            )


def build(
    set_name: str | None = None, sae_name: str | None = None, progress: Progress | None = None, verify: bool = True
) -> IndexReport:
    """Build what is missing of the index or out of date; what an interrupted run finished is kept.

    With `verify`, files that differ from what was written are found and built again: every byte is read.
    """
    started = time.perf_counter()
    entry, sae_entry = find_pair(set_name, sae_name)
    check_match(entry, sae_entry, read_json(sae_entry.path / "cfg.json"))
    encoded = bring_up_to_date(SetReader(entry), sae_entry, progress or Silent(), verify)
    index = Index(sae_entry.index_path)
    count_F = index.table()["count"]
    return IndexReport(
        set_name=entry.name,
        sae_name=sae_entry.name,
        rows=index.rows,
        features=index.features,
        alive=int((count_F > 0).sum()),
        postings=int(count_F.sum()),
        encoded=encoded,
        segments=len(index.manifest.segments),
        seconds=time.perf_counter() - started,
    )


def why_out_of_date(reader: SetReader, sae_entry: SaeEntry) -> str:
    """Why the SAE's index is not one of the set as it is now, as the end of a sentence; "" when it is."""
    shards = [shard["sha256"] for shard in reader.shards]
    return out_of_date(sae_entry.index_path, shards, lambda: weights_digest(sae_entry))


def bring_up_to_date(reader: SetReader, sae_entry: SaeEntry, progress: Progress, verify: bool = False) -> int:
    """Build the index of the SAE unless it is up to date; returns how many rows were encoded.

    Of several processes one builds and the others wait for it. Raises LensaeError where the folder cannot be written.
    """
    folder = sae_entry.index_path
    with _one_builder(folder, progress):
        damaged = verify and _remove_damaged(folder, progress)
        reason = why_out_of_date(reader, sae_entry) or ("is damaged" if damaged else "")
        if not reason:
            return 0
        progress.say(f"the feature index of {sae_entry.name} {reason}: building it")
        return _build(reader, sae_entry, progress)


def _build(reader: SetReader, sae_entry: SaeEntry, progress: Progress) -> int:
    from lensae.model.precision import fast_matmul
    from lensae.sae.checkpoint import load

    sae = load(sae_entry.path)
    check_match(reader.entry, sae_entry, sae.cfg)
    shards = [ShardRecord(**{name: shard[name] for name in ("file", "rows", "sha256")}) for shard in reader.shards]
    progress.start(f"indexing {sae.d_sae:,} features", reader.rows, "rows")
    digest, folder = _stamp_weights(sae_entry), sae_entry.index_path
    with fast_matmul():
        return build_index(folder, shards, SetSource(reader), sae, digest, progress.advance)


def _remove_damaged(folder: Path, progress: Progress) -> bool:
    """Remove the files of the index that are not what was written, so that they are built again; whether any was."""
    faults = verify_index(folder)
    for fault in faults:
        progress.say(f"{folder / fault.file}: {fault.what}")
        (folder / fault.file).unlink(missing_ok=True)
    return bool(faults)


@contextmanager
def _one_builder(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the index's lock, which is let go of when the process ends, however it ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.say("another process is building the feature index: waiting for it")
            lock.acquire()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        what = f"the feature index has to be built, and {folder} cannot be written"
        raise LensaeError(what, "build it where it can be, or make the folder writable") from error
    try:
        yield
    finally:
        lock.release()


def weights_digest(sae_entry: SaeEntry) -> str:
    """The sha256 of the SAE's weights; remembered in the index while their file has the same size and time."""
    stamp = sae_entry.index_path / WEIGHTS_STAMP
    try:
        known = read_json(stamp)
    except DamagedError:
        known = {}
    if {**known, "sha256": ""} == {**_file_facts(sae_entry.weights_path), "sha256": ""}:
        return known["sha256"]
    return _sha256(sae_entry.weights_path)


def _stamp_weights(sae_entry: SaeEntry) -> str:
    """The sha256 of the SAE's weights, and remember it."""
    facts = _file_facts(sae_entry.weights_path)
    digest = _sha256(sae_entry.weights_path)
    write_json(sae_entry.index_path / WEIGHTS_STAMP, {**facts, "sha256": digest})
    return digest


def _file_facts(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
