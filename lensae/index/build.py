"""Building an index: rows are encoded shard by shard and inverted into segments, which are merged into larger ones.

Every file is whole or not there, and its bytes depend only on the weights and on the shards it is made from. So a build
that was killed is resumed from the files that are there, and comes to the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lensae.core.durable import clear_partials
from lensae.core.manifest import ShardRecord
from lensae.index.encode import encode_shard
from lensae.index.file import Segment, is_made_from, open_segment, write_segment
from lensae.index.manifest import (
    FANOUT,
    SUMMARY,
    FileRecord,
    IndexManifest,
    SaeIdentity,
    SegmentRange,
    file_record,
    known_records,
    source_digest,
)
from lensae.index.merge import merge
from lensae.index.rows import EncodedRows
from lensae.index.segment import segment_of
from lensae.index.summary import write_summary
from lensae.index.tables import ShardColumns
from lensae.index.workers import in_threads

if TYPE_CHECKING:
    from lensae.sae.base import SAE

MOST_WORKERS = 4  # threads that encode and invert a shard each
WEIGHT_COPIES = 2**26  # bytes of encoders that all threads together may hold in the order that products need


class ShardSource(Protocol):
    """Where the rows of a set come from."""

    def activations(self, number: int) -> Iterator[np.ndarray]:
        """The activations of a shard in order, as at least one array (rows, d_model) in the type they are stored in."""
        ...

    def columns(self, number: int) -> ShardColumns:
        """What a shard says of its rows and documents."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What is done for one shard: its rows are encoded (`encode`) or are on disk, and become a segment of their own
    unless they are in one on disk; `kept` is such a segment, taken as it is once the rows of all its shards are there.
    """

    number: int
    encode: bool
    segment: bool
    kept: SegmentRange | None = None


def build_index(
    folder: Path,
    shards: Sequence[ShardRecord],
    source: ShardSource,
    sae: SAE,
    identity: SaeIdentity,
    advance: Callable[[int], None],
) -> int:
    """Bring the index in `folder` up to date with the shards and the SAE; returns how many rows were encoded.

    `advance` is called with the rows of each shard that is done. The caller sees to it that no other process builds the
    same index.
    """
    for part in (folder, folder / "rows", folder / "segments"):
        clear_partials(part)
    builder = _Builder(folder, shards, source, identity)
    steps = list(builder.steps())
    W_enc = sae.tensors["W_enc"]
    workers = min(MOST_WORKERS, WEIGHT_COPIES // W_enc.nbytes) if W_enc.device.type == "cpu" else 1
    with closing(in_threads(lambda step: builder.make(step, sae), steps, workers)) as made:
        for step, _none in zip(steps, made, strict=True):
            builder.take(step)
            advance(shards[step.number].rows)
    builder.finish(sae.d_sae)
    return sum(shards[step.number].rows for step in steps if step.encode)


class _Builder:
    """The segments on disk of an index that is built, in order of shards."""

    def __init__(self, folder: Path, shards: Sequence[ShardRecord], source: ShardSource, identity: SaeIdentity):
        self.folder, self.shards, self.source, self.identity = folder, shards, source, identity
        self.segments: list[SegmentRange] = []
        self.records = known_records(folder)

    def steps(self) -> Iterator[_Step]:
        """What is to be done, in order of shards."""
        number = 0
        while number < len(self.shards):
            kept = self._largest_segment(number)
            last = kept.last if kept else number + 1
            for one in range(number, last):
                encode = not self._is_made(self._rows_file(one), SegmentRange(one, one + 1))
                yield _Step(number=one, encode=encode, segment=kept is None, kept=kept if one == last - 1 else None)
            number = last

    def make(self, step: _Step, sae: SAE) -> None:
        """Make the files of a step's shard that are not there. Several threads may call this at once."""
        rows_file, covered = self._rows_file(step.number), SegmentRange(step.number, step.number + 1)
        source, encoded = self._made_from(covered), None
        if step.encode:
            encoded = encode_shard(sae, self.source.activations(step.number))
            encoded.write(self.folder / rows_file, source)
            self.records[rows_file, source] = file_record(self.folder, rows_file)
        if step.segment:
            encoded = encoded or EncodedRows.read(self.folder / rows_file)
            segment = segment_of(encoded, self.source.columns(step.number))
            write_segment(self.folder / covered.file, segment, source)
            self.records.pop((covered.file, source), None)

    def take(self, step: _Step) -> None:
        """Take the segment that `make` made in the next step, or the one that the step ends with; when the last FANOUT
        segments make up a larger one they are merged."""
        covered = SegmentRange(step.number, step.number + 1) if step.segment else step.kept
        if covered is None:
            return
        self.segments.append(covered)
        size = covered.last - covered.first
        while covered.last % (size * FANOUT) == 0:
            size *= FANOUT
            covered = SegmentRange(covered.last - size, covered.last)
            parts, self.segments = self.segments[-FANOUT:], self.segments[:-FANOUT]
            self._merge(parts, covered)
            self.segments.append(covered)

    def finish(self, features: int) -> None:
        """Write the summary and index.json; then remove what does not belong to the index."""
        with ExitStack() as stack:
            segments = [stack.enter_context(self._open(covered)) for covered in self.segments]
            write_summary(segments, self.folder / SUMMARY)
        singles = (SegmentRange(number, number + 1) for number in range(len(self.shards)))
        manifest = IndexManifest(
            sae=self.identity,
            features=features,
            shards=tuple(shard.sha256 for shard in self.shards),
            shard_rows=tuple(shard.rows for shard in self.shards),
            rows=tuple(self._record(self._rows_file(single.first), single) for single in singles),
            segments=tuple(self._record(covered.file, covered) for covered in self.segments),
            summary=file_record(self.folder, SUMMARY),
        )
        manifest.write(self.folder)
        listed = {self.folder / record.file for record in manifest.files}
        for path in set(self.folder.rglob("*.h5")) - listed:
            path.unlink()

    def _merge(self, parts: Sequence[SegmentRange], covered: SegmentRange) -> None:
        with ExitStack() as stack:
            segments = [stack.enter_context(self._open(part)) for part in parts]
            source = self._made_from(covered)
            merge(segments, self.folder / covered.file, source)
        self.records[covered.file, source] = file_record(self.folder, covered.file)
        for part in parts:
            (self.folder / part.file).unlink()

    def _open(self, covered: SegmentRange) -> AbstractContextManager[Segment]:
        return open_segment(self.folder / covered.file)

    def _largest_segment(self, first: int) -> SegmentRange | None:
        """The largest segment on disk that begins with shard `first`."""
        sizes = [1]
        while first % (sizes[-1] * FANOUT) == 0 and first + sizes[-1] * FANOUT <= len(self.shards):
            sizes.append(sizes[-1] * FANOUT)
        ranges = (SegmentRange(first, first + size) for size in reversed(sizes))
        return next((covered for covered in ranges if self._is_made(covered.file, covered)), None)

    def _is_made(self, file: str, covered: SegmentRange) -> bool:
        return is_made_from(self.folder / file, self._made_from(covered))

    def _record(self, file: str, covered: SegmentRange) -> FileRecord:
        """The record of a file; if index.json had one it is that of the bytes that were written, whatever is there."""
        return self.records.get((file, self._made_from(covered))) or file_record(self.folder, file)

    def _made_from(self, covered: SegmentRange) -> str:
        """The digest of what a file over these shards is made from."""
        return source_digest(self.identity, [shard.sha256 for shard in self.shards[covered.first : covered.last]])

    def _rows_file(self, number: int) -> str:
        """The file of what fires on the rows of a shard, below the index's folder."""
        return f"rows/{self.shards[number].file}"
