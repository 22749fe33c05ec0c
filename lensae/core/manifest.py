"""A set's manifest: what was collected, pass by pass and shard by shard.

It may have been edited by hand, so every entry is checked when it is read, once.

    manifest.json      everything, as it was when a pass began or was finished
    shards.jsonl       a line for each shard finished since: adding one costs the same however many shards the set has
    shards-<n>.jsonl   the same of process n, where several collect
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lensae.core.durable import read_json, write_json
from lensae.core.errors import DamagedError
from lensae.core.validation import HINT, record_from_json

NEWEST = 1  # the schema of shards and manifests that this version writes
SHARD_FILE = re.compile(r"\d{5,}(-\d+)?\.h5")
MANIFEST, JOURNALS = "manifest.json", "shards*.jsonl"


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The model that was collected from; `path` is "" for a model that its name finds again."""

    name: str
    path: str
    weights_sha256: str
    tokenizer_sha256: str
    revision: str = ""
    weights_processing: str = "none"
    d_model: int = 0
    n_layers: int = 0


@dataclass(kw_only=True)
class PassRecord:
    """One collection pass: `spec` is what makes two passes the same, `corpus` how the corpus is found again, `command`
    what was typed. `completed_at` is None, and the figures are 0, until the pass is finished."""

    spec: dict[str, Any]
    corpus: str
    command: str
    started_at: str
    completed_at: str | None
    processes: int = 1
    first_shard: int = 0
    documents: int = 0
    rows: int = 0
    dropped: int = 0
    seconds: float = 0.0
    rows_in_seconds: int = 0
    relative_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One whole shard; `first_document` counts within what process `rank` did of pass `pass_number`."""

    file: str
    rows: int
    documents: int
    pass_number: int
    first_document: int
    bytes: int
    sha256: str
    dropped: int = 0
    rank: int = 0

    @property
    def number(self) -> int:
        """The number in the file's name."""
        return int(self.file.removesuffix(".h5").partition("-")[0])


@dataclass(kw_only=True)
class Manifest:
    """Everything that is recorded of a set."""

    schema: int
    model: ModelRecord
    hook: str
    width: int
    dtype: str
    passes: list[PassRecord]
    shards: list[ShardRecord]
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain values."""
        return {**vars(self), "model": asdict(self.model), "passes": [asdict(one) for one in self.passes]} | {
            "shards": [shard_to_json(shard) for shard in self.shards]
        }


def shard_to_json(shard: ShardRecord) -> dict[str, Any]:
    """A shard's entry as plain values ("pass" is no name in Python)."""
    values = asdict(shard)
    return {("pass" if name == "pass_number" else name): value for name, value in values.items()}


def shard_from_json(value: object, where: str) -> ShardRecord:
    """The opposite; raises DamagedError naming `where`."""
    if isinstance(value, dict):
        value = {("pass_number" if name == "pass" else name): one for name, one in value.items()}
    shard = record_from_json(ShardRecord, value, where)
    if not SHARD_FILE.fullmatch(shard.file):
        raise DamagedError(f"{where} has the file {shard.file!r}", HINT)
    return shard


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the set in `folder`, with the shards of its journal; raises DamagedError when it is unusable."""
    path = folder / MANIFEST
    # The journals first: a writer that folds them into the manifest meanwhile leaves each shard in one of the two.
    journalled = read_journals(folder)
    manifest = manifest_from_json(read_json(path), path)
    add_shards(manifest, journalled)
    check_shards(manifest, path)
    return manifest


def add_shards(manifest: Manifest, shards: list[ShardRecord]) -> None:
    """List those of `shards` that the manifest does not have, all in the order of their numbers and ranks."""
    listed = {shard.file for shard in manifest.shards}
    manifest.shards += [shard for shard in shards if shard.file not in listed]
    manifest.shards.sort(key=lambda shard: (shard.number, shard.rank))


def read_journals(folder: Path) -> list[ShardRecord]:
    """The shards in the journals of the set in `folder`."""
    return [shard for path in sorted(folder.glob(JOURNALS)) for shard in _read_journal(path)]


def _read_journal(path: Path) -> Iterator[ShardRecord]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:  # folded into the manifest since it was listed
        return
    # A kill can cut the last line short. Its shard is on disk: the next writer lists it again.
    for number, line in enumerate(lines[:-1], 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DamagedError(f"{path} is not JSON lines ({error})", HINT) from None
        yield shard_from_json(value, f"{path}: line {number}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json whole, with all shards of the journals in `manifest`, and remove the journals."""
    write_json(folder / MANIFEST, manifest.to_json())
    for path in folder.glob(JOURNALS):
        path.unlink()


def append_shard(folder: Path, shard: ShardRecord) -> None:
    """Add one shard to the journal of the process that wrote it; the line is on disk when this returns."""
    with open(folder / (f"shards-{shard.rank}.jsonl" if shard.rank else "shards.jsonl"), "ab") as file:
        file.write(json.dumps(shard_to_json(shard)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def manifest_from_json(value: dict[str, Any], path: Path) -> Manifest:
    """The manifest at `path`; raises DamagedError naming the first entry that cannot be right."""
    manifest = record_from_json(Manifest, value, f"{path}")
    if manifest.schema > NEWEST:
        raise DamagedError(f"{path} was written by a newer lensae", "upgrade lensae to read it")
    manifest.model = record_from_json(ModelRecord, manifest.model, f"{path}: model")
    manifest.passes = [
        record_from_json(PassRecord, one, f"{path}: passes[{i}]") for i, one in enumerate(manifest.passes)
    ]
    manifest.shards = [shard_from_json(one, f"{path}: shards[{i}]") for i, one in enumerate(manifest.shards)]
    check_shards(manifest, path)
    return manifest


def check_shards(manifest: Manifest, path: Path) -> None:
    """Raise DamagedError for a shard that is listed twice or belongs to no pass."""
    files = set()
    for number, shard in enumerate(manifest.shards):
        where = f"{path}: shards[{number}]"
        if shard.file in files:
            raise DamagedError(f"{where} has the file {shard.file!r} again", HINT)
        if shard.pass_number >= len(manifest.passes):
            raise DamagedError(f"{where} is of pass {shard.pass_number}, which does not exist", HINT)
        files.add(shard.file)
