"""index.json: what an index was made from, which segments it has, and whether it is out of date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lensae.core.durable import read_json, write_json
from lensae.core.errors import DamagedError
from lensae.core.program import command
from lensae.index.file import SCHEMA

MANIFEST, SUMMARY = "index.json", "summary.h5"
FANOUT = 8  # neighbouring segments of one size that are merged into one


@dataclass(frozen=True)
class FileRecord:
    """A file of the index, by its path below the index's folder."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SegmentRange:
    """The shards first ... last - 1 that a segment is over: FANOUT^n of them, the first a multiple of that."""

    first: int
    last: int

    @property
    def file(self) -> str:
        """The segment's path below the index's folder."""
        return f"segments/{self.first:05d}-{self.last - 1:05d}.h5"


@dataclass(frozen=True, kw_only=True)
class SaeIdentity:
    """What tells one SAE from another: the digest of its weights, and its configuration without the metadata."""

    weights_sha256: str
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """What an index says of itself: the SAE and the digests of the shards that it was made from, the number of rows in
    each shard, and its files: one of rows per shard, the segments in order, the summary."""

    sae: SaeIdentity
    features: int
    shards: tuple[str, ...]
    shard_rows: tuple[int, ...]
    rows: tuple[FileRecord, ...]
    segments: tuple[FileRecord, ...]
    summary: FileRecord

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Every file but index.json."""
        return (*self.rows, *self.segments, self.summary)

    def write(self, folder: Path) -> None:
        """Write index.json."""
        write_json(folder / MANIFEST, {"schema": SCHEMA, **asdict(self)})


def read_manifest(folder: Path) -> IndexManifest | None:
    """The manifest of the index in `folder`, or None when there is none of this schema.

    Raises DamagedError when it cannot be used.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    record = read_json(path)
    if record.pop("schema", None) != SCHEMA:
        return None
    try:
        rows, segments = (tuple(FileRecord(**one) for one in record.pop(name)) for name in ("rows", "segments"))
        summary = FileRecord(**record.pop("summary"))
        shards, shard_rows = (tuple(record.pop(name)) for name in ("shards", "shard_rows"))
        sae = SaeIdentity(**record.pop("sae"))
        manifest = IndexManifest(
            sae=sae, shards=shards, shard_rows=shard_rows, rows=rows, segments=segments, summary=summary, **record
        )
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{path} cannot be used ({error})", f"build it again: {command('index')}") from None
    lengths = [len(column) for column in (shard_rows, manifest.rows, shards)]
    if len(set(lengths)) > 1 or len(manifest.segments) != len(plan(len(shards))):
        raise DamagedError(f"{path} does not list as many files as it should", f"build it again: {command('index')}")
    return manifest


def plan(shards: int) -> list[SegmentRange]:
    """The segments of an index over so many shards: over FANOUT^n of them each, the largest that fit first.

    There are at most FANOUT - 1 of each size, so their number grows with the logarithm of the set; when shards are
    added, segments that are full stay as they are.
    """
    size, first, ranges = 1, 0, []
    while size * FANOUT <= shards:
        size *= FANOUT
    while first < shards:
        while size > shards - first:
            size //= FANOUT
        ranges.append(SegmentRange(first, first + size))
        first += size
    return ranges


def source_digest(sae: SaeIdentity, shards: Sequence[str]) -> str:
    """A sha256 of what a file of the index is made from: the schema, the SAE, and the shards with these digests."""
    return hashlib.sha256(json.dumps([SCHEMA, asdict(sae), *shards], sort_keys=True).encode()).hexdigest()


def file_record(folder: Path, file: str) -> FileRecord:
    """The record of a file as it is on disk."""
    with open(folder / file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(file, stream.tell(), digest)


def known_records(folder: Path) -> dict[tuple[str, str], FileRecord]:
    """The files that index.json lists, by path and by what they were made from."""
    try:
        manifest = read_manifest(folder)
    except DamagedError:
        return {}
    if manifest is None:
        return {}
    ranges = plan(len(manifest.shards))
    shards = [(shard,) for shard in manifest.shards] + [manifest.shards[one.first : one.last] for one in ranges]
    records = (*manifest.rows, *manifest.segments)
    sources = (source_digest(manifest.sae, covered) for covered in shards)
    return {(record.file, source): record for record, source in zip(records, sources, strict=True)}


def out_of_date(folder: Path, shards: Sequence[str], sae: SaeIdentity) -> str:
    """Why the index in `folder` is not one of the shards with these digests and of this SAE, as the end of a sentence
    that begins with "the feature index"; "" when it is.

    Nothing is read but index.json, and of the other files only their sizes.
    """
    try:
        manifest = read_manifest(folder)
    except DamagedError:
        return f"has a damaged {MANIFEST}"
    if manifest is None:
        return _missing(folder)
    if manifest.shards != tuple(shards):
        grown = len(shards) - len(manifest.shards)
        if grown > 0 and manifest.shards == tuple(shards[:-grown]):
            return f"lacks {grown} of {len(shards)} shards"
        return "was made from shards that have changed since"
    if manifest.sae.weights_sha256 != sae.weights_sha256:
        return "was made with other weights"
    if manifest.sae != sae:
        return "was made with another configuration of the SAE"
    for record in (*manifest.segments, manifest.summary):
        path = folder / record.file
        if not path.is_file() or path.stat().st_size != record.bytes:
            return f"lacks {record.file}" if not path.is_file() else f"has a damaged {record.file}"
    return ""


def _missing(folder: Path) -> str:
    if (folder / MANIFEST).is_file():
        return "was made by another version of lensae"
    if any(folder.glob("rows/*.h5")) or any(folder.glob("segments/*.h5")):
        return "is unfinished"
    return "was made by another version of lensae" if any(folder.glob("*.h5")) else "is missing"
