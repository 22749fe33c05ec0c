"""index: every feature of an SAE over every row of its set, as an inverted file with tables of tokens and labels.

Shapes: T rows of a shard, N documents, S input tokens, F features; a 1 behind a letter is one more.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensae.core.device import current_device
from lensae.core.durable import read_json, write_json
from lensae.core.errors import DamagedError, LensaeError, UserError
from lensae.core.locks import FolderLock
from lensae.core.paths import SaeEntry, SetEntry, find_pair
from lensae.index.manifest import SaeIdentity, out_of_date
from lensae.index.query import Index
from lensae.index.tables import ShardColumns
from lensae.sae.formats._layout import CONFIG, WEIGHTS, weights_digest
from lensae.stages.shared.progress import Progress, Silent
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
    model = entry.manifest.model
    metadata = cfg.get("metadata", {})
    if int(cfg["d_in"]) != int(entry.manifest.width):
        raise UserError(
            f"SAE '{sae_entry.name}' takes {cfg['d_in']} dimensions, {entry.name} has {entry.manifest.width}",
            "choose the set it was trained on with --set",
        )
    facts = (
        ("model", metadata.get("model_weights_sha256"), model.weights_sha256),
        ("hook", metadata.get("hook_name"), entry.manifest.hook),
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
    check_match(entry, sae_entry, read_json(sae_entry.path / CONFIG))
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
    shards = [shard.sha256 for shard in reader.shards]
    return out_of_date(sae_entry.index_path, shards, _identity(sae_entry, current_digest(sae_entry)))


def bring_up_to_date(reader: SetReader, sae_entry: SaeEntry, progress: Progress, verify: bool = False) -> int:
    """Build the index of the SAE unless it is up to date; returns how many rows were encoded.

    Of several processes one builds and the others wait for it. Raises LensaeError where the folder cannot be written.
    """
    folder = sae_entry.index_path
    with _lock(folder, progress):
        damaged = verify and _remove_damaged(folder, progress)
        if not damaged and not why_out_of_date(reader, sae_entry):
            return 0
        return _build(reader, sae_entry, progress)


def _build(reader: SetReader, sae_entry: SaeEntry, progress: Progress) -> int:
    from lensae.index.build import build_index
    from lensae.model.precision import fast_matmul
    from lensae.sae.formats.saelens import load

    sae = load(sae_entry.path).to(current_device())
    check_match(reader.entry, sae_entry, sae.cfg)
    progress.start(f"indexing {sae.d_sae:,} features", reader.rows, "rows")
    identity, source = _identity(sae_entry, _stamp_weights(sae_entry)), SetSource(reader)
    with fast_matmul():
        return build_index(sae_entry.index_path, reader.shards, source, sae, identity, progress.advance)


def _remove_damaged(folder: Path, progress: Progress) -> bool:
    """Remove the files of the index that are not what was written, so that they are built again; whether any was."""
    from lensae.index.verify import verify_index

    faults = verify_index(folder)
    for fault in faults:
        progress.say(f"{folder / fault.file}: {fault.what}")
        (folder / fault.file).unlink(missing_ok=True)
    return bool(faults)


def _lock(folder: Path, progress: Progress) -> FolderLock:
    """The lock of the index, once no other process has it; raises LensaeError where the folder cannot be written."""
    activity = "building the feature index in"
    try:
        try:
            return FolderLock(folder, activity=activity)
        except LensaeError as error:
            progress.say(f"{error.what}: waiting for it")
            return FolderLock(folder, activity=activity, wait=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        what = f"the feature index has to be built, and {folder} cannot be written"
        raise LensaeError(what, "build it where it can be, or make the folder writable") from error


def _identity(sae_entry: SaeEntry, weights_sha256: str) -> SaeIdentity:
    cfg = read_json(sae_entry.path / CONFIG)
    config = {name: value for name, value in cfg.items() if name != "metadata"}
    return SaeIdentity(weights_sha256=weights_sha256, config=config)


def current_digest(sae_entry: SaeEntry) -> str:
    """The sha256 of the SAE's weights; remembered in the index while their file has the same size and time."""
    try:
        known = read_json(sae_entry.index_path / WEIGHTS_STAMP)
    except DamagedError:
        known = {}
    if {**known, "sha256": ""} == {**_file_facts(sae_entry.path / WEIGHTS), "sha256": ""}:
        return known["sha256"]
    return weights_digest(sae_entry.path)


def _stamp_weights(sae_entry: SaeEntry) -> str:
    """The sha256 of the SAE's weights, which is remembered."""
    facts, digest = _file_facts(sae_entry.path / WEIGHTS), weights_digest(sae_entry.path)
    write_json(sae_entry.index_path / WEIGHTS_STAMP, {**facts, "sha256": digest})
    return digest


def _file_facts(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
