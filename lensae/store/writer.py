"""Writing a set: whole documents into shards, one manifest, resumable at any shard.

The cost of a shard does not grow with the number of shards in the set: its record is appended to a journal, and the
manifest is written whole only when a pass begins and when it is finished.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from lensae.core.durable import clear_partials, write_file
from lensae.core.errors import DamagedError, UserError
from lensae.core.locks import FolderLock
from lensae.core.manifest import (
    Manifest,
    ModelRecord,
    PassRecord,
    ShardRecord,
    add_shards,
    append_shard,
    read_journals,
    read_manifest,
    write_manifest,
)
from lensae.core.records import CapturedDocument
from lensae.store import shard as shards
from lensae.store.schema import SCHEMA, shard_name

SHARD_BYTES = 32 * 2**20


def default_shard_rows(width: int, dtype: str) -> int:
    """Rows that make a shard of about 32 MiB."""
    return max(1024, SHARD_BYTES // (width * (2 if dtype == "float16" else 4)))


def now() -> str:
    """The current time (UTC), as it is recorded everywhere."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class SetWriter:
    """Appends one collection pass to the set in `folder` (a context manager that has the set's lock).

    `header` describes the set (schema, model, hook, width, dtype, versions) and `spec` the pass: an unfinished pass
    with an equal spec is resumed, `documents_done` saying how many documents its whole shards hold; a finished one has
    `complete` set. `corpus` is how the corpus was named, so that it can be found again. Raises UserError when the set
    in the folder is of another model, hook or dtype, and LensaeError when another process is writing to it.

    Several processes may write one pass: each gives its `rank` of `world_size`, counts its own documents and writes
    shards of its own. Rank 0 alone has the lock and writes the manifest; the others are constructed after it, and it
    calls `finish` after they have called `flush`.
    """

    def __init__(
        self,
        folder: Path,
        header: Manifest,
        spec: dict,
        command: str,
        shard_rows: int | None = None,
        corpus: str = "",
        compress: str | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.folder, self.spec, self.corpus, self.compress = folder, spec, corpus, compress
        self.rank, self.world_size = rank, world_size
        self.shard_rows = shard_rows or default_shard_rows(header.width, header.dtype)
        self._lock = FolderLock(folder) if rank == 0 else None
        try:
            self.manifest = self._open_manifest(header)
            self.number = self._find_pass(command)
            if rank == 0:
                clear_partials(self.folder / "shards")
                self._list_whole_shards()
                write_manifest(self.folder, self.manifest)
        except BaseException:
            self._release()
            raise
        self._pending: list[CapturedDocument] = []
        self._pending_rows = 0
        self._rows_before = sum(shard.rows for shard in self.shards_of_pass())
        own = [shard for shard in self.shards_of_pass() if shard.rank == rank]
        self._documents_done = sum(shard.documents for shard in own)
        self._rows_done = sum(shard.rows for shard in own)
        self._taken_names = {shard.file for shard in self.manifest.shards}
        first = self.pass_record.first_shard
        self._next_number = max((shard.number + 1 for shard in own), default=first)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard")
        self._writing: Future | None = None

    def _open_manifest(self, header: Manifest) -> Manifest:
        (self.folder / "shards").mkdir(exist_ok=True)
        if not (self.folder / "manifest.json").is_file():
            return header
        manifest = read_manifest(self.folder)
        if manifest.model != header.model:
            self._refuse_model(manifest.model, header.model)
        for name in ("schema", "hook", "width", "dtype"):
            before, given = getattr(manifest, name), getattr(header, name)
            if before != given:
                raise UserError(f"{self.folder} has {name} {before}, not {given}", "give --name for a set of its own")
        return manifest

    def _refuse_model(self, before: ModelRecord, given: ModelRecord) -> None:
        if before.name == given.name:
            raise UserError(f"the weights of {given.name} are not those that {self.folder} holds", "give --name")
        what = f"{self.folder} has model {before.name}, not {given.name}"
        raise UserError(what, "give --name for a set of its own")

    def _find_pass(self, command: str) -> int:
        for number, known in enumerate(self.manifest.passes):
            if known.spec == self.spec:
                if not known.completed_at and known.processes != self.world_size:
                    raise UserError(
                        f"{self.folder} has an unfinished pass of these settings by {known.processes} processes, "
                        f"not {self.world_size}",
                        f"resume it with: {known.command}",
                    )
                return number
        new = PassRecord(
            spec=self.spec,
            corpus=self.corpus,
            command=command,
            processes=self.world_size,
            first_shard=len(self.manifest.shards),
            started_at=now(),
            completed_at=None,
        )
        self.manifest.passes.append(new)
        return len(self.manifest.passes) - 1

    def _list_whole_shards(self) -> None:
        """List the whole shards that the manifest lacks: those of other processes and of one killed before it could."""
        add_shards(self.manifest, read_journals(self.folder))
        listed = {shard.file for shard in self.manifest.shards}
        unlisted = [path for path in sorted(self.folder.glob("shards/*.h5")) if path.name not in listed]
        add_shards(self.manifest, [self._record_of(path.name, path.read_bytes()) for path in unlisted])

    def _record_of(self, name: str, data: bytes | memoryview) -> ShardRecord:
        with shards.Shard(self.folder / "shards" / name) as shard:
            attrs = {key: int(shard.attrs.get(key, 0)) for key in ("pass", "first_document", "dropped", "rank")}
            pass_number = attrs.pop("pass")
            if pass_number >= len(self.manifest.passes):
                raise DamagedError(f"{shard.path} belongs to a pass that the manifest does not have")
            rows, documents = shard.rows, shard.n_documents
        digest = hashlib.sha256(data).hexdigest()
        return ShardRecord(
            file=name,
            rows=rows,
            documents=documents,
            bytes=len(data),
            sha256=digest,
            pass_number=pass_number,
            first_document=attrs["first_document"],
            dropped=attrs["dropped"],
            rank=attrs["rank"],
        )

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._thread.shutdown(wait=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def pass_record(self) -> PassRecord:
        """The manifest's record of this pass."""
        return self.manifest.passes[self.number]

    @property
    def complete(self) -> bool:
        """Whether this pass is finished."""
        return bool(self.pass_record.completed_at)

    @property
    def documents_done(self) -> int:
        """Documents of this pass and process in whole shards: an interrupted pass is resumed with the next one."""
        return self._documents_done

    @property
    def rows_done(self) -> int:
        """Rows of this pass and process in whole shards."""
        return self._rows_done

    def shards_of_pass(self) -> list[ShardRecord]:
        """The manifest's records of the pass's whole shards, of every rank."""
        return [shard for shard in self.manifest.shards if shard.pass_number == self.number]

    def append(self, document: CapturedDocument) -> None:
        """Add one document; when `shard_rows` rows are pending, a thread writes them while more are collected.

        An exception in the thread (a full disk) is raised by a later call, at the latest by `finish`.
        """
        self._pending.append(document)
        self._pending_rows += len(document.token_id)
        if self._pending_rows >= self.shard_rows:
            self._submit_pending()

    def _submit_pending(self) -> None:
        """Let the thread write the pending documents, once it has written the shard before."""
        self._wait_for_thread()
        documents, self._pending, self._pending_rows = self._pending, [], 0
        self._writing = self._thread.submit(self._write_shard, documents)

    def _wait_for_thread(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write_shard(self, documents: list[CapturedDocument]) -> None:
        name = self._next_name()
        attrs = {"pass": self.number, "first_document": self.documents_done}
        attrs |= {"rank": self.rank} if self.world_size > 1 else {}
        data, rows = shards.image(documents, self.manifest.hook, self.manifest.dtype, attrs, self.compress)
        write_file(self.folder / "shards" / name, data)
        shard = self._record_of(name, data)
        append_shard(self.folder, shard)
        self.manifest.shards.append(shard)
        self._documents_done += len(documents)
        self._rows_done += rows

    def _next_name(self) -> str:
        """The name after this process's last shard of the pass, unless another pass has taken it."""
        rank = self.rank if self.world_size > 1 else None
        while shard_name(self._next_number, rank) in self._taken_names:
            self._next_number += 1
        self._next_number += 1
        return shard_name(self._next_number - 1, rank)

    def flush(self) -> None:
        """Write the pending documents, and wait until they are on disk."""
        if self._pending:
            self._submit_pending()
        self._wait_for_thread()

    def finish(self, started: float | None = None) -> None:
        """Write the pending documents and mark the pass complete; `started` is the time.perf_counter() of its begin."""
        self.flush()
        seconds = time.perf_counter() - started if started is not None else 0.0
        self._list_whole_shards()
        of_pass, record = self.shards_of_pass(), self.pass_record
        record.documents = sum(shard.documents for shard in of_pass)
        record.rows = sum(shard.rows for shard in of_pass)
        record.dropped = sum(shard.dropped for shard in of_pass)
        record.completed_at, record.seconds = now(), round(seconds, 3)
        record.rows_in_seconds = record.rows - self._rows_before
        write_manifest(self.folder, self.manifest)


def header(model: ModelRecord, hook: str, width: int, dtype: str, versions: dict[str, str]) -> Manifest:
    """The manifest of an empty set."""
    return Manifest(
        schema=SCHEMA, model=model, hook=hook, width=width, dtype=dtype, versions=versions, passes=[], shards=[]
    )
