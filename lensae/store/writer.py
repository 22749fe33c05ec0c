"""Writing a set: whole documents into shards, one manifest, resumable at any shard."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from lensae.durable import clear_partials, write_file, write_json
from lensae.errors import DamagedError, UserError
from lensae.paths import read_set
from lensae.records import CapturedDocument
from lensae.store import shard as shards
from lensae.store.lock import WriterLock
from lensae.store.schema import SCHEMA, shard_name, shard_number

SHARD_BYTES = 32 * 2**20
FIXED = ("schema", "model", "hook", "width", "dtype")


def default_shard_rows(width: int, dtype: str) -> int:
    """Rows that make a shard of about 32 MiB."""
    return max(1024, SHARD_BYTES // (width * (2 if dtype == "float16" else 4)))


def now() -> str:
    """The present moment, as it is recorded everywhere."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class SetWriter:
    """Appends one collection pass to the set in `folder` (a context manager that holds the set's lock).

    `header` describes the set (schema, model, hook, width, dtype, versions) and `spec` the pass: a pass with an equal
    spec that was cut off is gone on with, `documents_done` saying how many documents its whole shards hold; one that
    was finished has `complete` set. `corpus` is how the corpus was named, so that it can be found again. Raises
    UserError when the set in the folder is of another model, hook or dtype.

    Several processes may write one pass: each gives its `rank` of `world`, counts its own documents and writes shards
    of its own. Rank 0 alone holds the lock and writes the manifest; the others are made after it, and it finishes
    after they have.
    """

    def __init__(
        self,
        folder: Path,
        header: dict,
        spec: dict,
        command: str,
        shard_rows: int | None = None,
        corpus: str = "",
        compress: str | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        self.folder, self.spec, self.corpus, self.compress = folder, spec, corpus, compress
        self.rank, self.world = rank, world
        self.shard_rows = shard_rows or default_shard_rows(header["width"], header["dtype"])
        self._lock = WriterLock(folder) if rank == 0 else None
        try:
            self.manifest = self._open_manifest(header)
            self.number = self._find_pass(command)
            if rank == 0:
                clear_partials(self.folder / "shards")
                self._adopt_whole_shards()
                self._save()
        except BaseException:
            self._release()
            raise
        self._pending: list[CapturedDocument] = []
        self._pending_rows = 0
        self._rows_before = sum(shard["rows"] for shard in self.shards_of_pass())
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard")
        self._writing: Future | None = None

    def _open_manifest(self, header: dict) -> dict:
        (self.folder / "shards").mkdir(exist_ok=True)
        if not (self.folder / "manifest.json").is_file():
            return {**header, "passes": [], "shards": []}
        manifest = read_set(self.folder).manifest
        for key in FIXED:
            if manifest.get(key) != header[key]:
                self._refuse(key, manifest.get(key), header[key])
        return manifest

    def _refuse(self, key: str, there, given) -> None:
        if key == "model":
            if there["name"] == given["name"]:
                raise UserError(f"the weights of {given['name']} are not those that {self.folder} holds", "give --name")
            there, given = there["name"], given["name"]
        raise UserError(f"{self.folder} has {key} {there}, not {given}", "give --name for a set of its own")

    def _find_pass(self, command: str) -> int:
        for number, known in enumerate(self.manifest["passes"]):
            if known["spec"] == self.spec:
                if not known["completed_at"] and known.get("processes", 1) != self.world:
                    raise UserError(
                        f"{self.folder} has this pass half done by {known.get('processes', 1)} processes, not "
                        f"{self.world}",
                        f"go on with: {known['command']}",
                    )
                return number
        entry = {
            "spec": self.spec,
            "corpus": self.corpus,
            "command": command,
            "processes": self.world,
            "first_shard": len(self.manifest["shards"]),
            "started_at": now(),
            "completed_at": None,
        }
        self.manifest["passes"].append(entry)
        return len(self.manifest["passes"]) - 1

    def _adopt_whole_shards(self) -> None:
        """List whole shards that are not: finished just before a kill, or by another process."""
        listed = {entry["file"] for entry in self.manifest["shards"]}
        for path in sorted(self.folder.glob("shards/*.h5")):
            if path.name not in listed:
                self._list(path.name, path.read_bytes())

    def _list(self, name: str, data: bytes) -> None:
        with shards.Shard(self.folder / "shards" / name) as shard:
            if int(shard.attrs["pass"]) >= len(self.manifest["passes"]):
                raise DamagedError(f"{shard.path} belongs to a pass that the manifest does not have")
            entry = {"file": name, "rows": shard.rows, "documents": shard.n_documents}
            known = [key for key in ("pass", "first_document", "dropped", "rank") if key in shard.attrs]
            entry |= {key: int(shard.attrs[key]) for key in known}
        self.manifest["shards"].append(entry | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        self.manifest["shards"].sort(key=lambda e: e["file"])

    def _save(self) -> None:
        write_json(self.folder / "manifest.json", self.manifest)

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(self, *_exc) -> None:
        self._thread.shutdown(wait=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def entry(self) -> dict:
        """What the manifest says of this pass."""
        return self.manifest["passes"][self.number]

    @property
    def complete(self) -> bool:
        """Whether this very pass was finished before."""
        return bool(self.entry["completed_at"])

    @property
    def documents_done(self) -> int:
        """Documents of this pass and process in whole shards: an interrupted pass goes on with the next one."""
        return sum(shard["documents"] for shard in self._own())

    @property
    def rows_done(self) -> int:
        """Rows of this pass and process in whole shards."""
        return sum(shard["rows"] for shard in self._own())

    def shards_of_pass(self) -> list[dict]:
        """What the manifest says of the pass's whole shards, whoever wrote them."""
        return [shard for shard in self.manifest["shards"] if shard["pass"] == self.number]

    def _own(self) -> list[dict]:
        return [shard for shard in self.shards_of_pass() if shard.get("rank", 0) == self.rank]

    def append(self, document: CapturedDocument) -> None:
        """Add one document; as soon as there are `shard_rows` rows, a thread writes them while more are collected.

        Raises what went wrong in the thread (a full disk), at the latest when the pass is finished.
        """
        self._pending.append(document)
        self._pending_rows += len(document.token_id)
        if self._pending_rows >= self.shard_rows:
            self._hand_over()

    def _hand_over(self) -> None:
        """Let the thread write what is pending, once it is through with the shard before."""
        self._wait()
        documents, self._pending, self._pending_rows = self._pending, [], 0
        self._writing = self._thread.submit(self._write_shard, documents)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write_shard(self, documents: list[CapturedDocument]) -> None:
        name = self._next_name()
        attrs = {"pass": self.number, "first_document": self.documents_done}
        attrs |= {"rank": self.rank} if self.world > 1 else {}
        hook, dtype = self.manifest["hook"], self.manifest["dtype"]
        data, _rows = shards.image(documents, hook, dtype, attrs, self.compress)
        write_file(self.folder / "shards" / name, data)
        self._list(name, data)
        if self.rank == 0:
            self._save()

    def _next_name(self) -> str:
        """The name after this process's last shard of the pass; another pass may have taken it meanwhile."""
        taken = {shard["file"] for shard in self.manifest["shards"]}
        own = [shard_number(shard["file"]) for shard in self._own()]
        number = max(own) + 1 if own else self.entry.get("first_shard", len(taken))
        rank = self.rank if self.world > 1 else None
        while shard_name(number, rank) in taken:
            number += 1
        return shard_name(number, rank)

    def flush(self) -> None:
        """Write what is left, and wait until it is on disk."""
        if self._pending:
            self._hand_over()
        self._wait()

    def finish(self, started: float | None = None) -> None:
        """Write what is left and mark the pass complete; `started` is when its work began, by time.perf_counter()."""
        self.flush()
        seconds = time.perf_counter() - started if started is not None else 0.0
        self._adopt_whole_shards()
        found = self.shards_of_pass()
        totals = {key: sum(shard[key] for shard in found) for key in ("documents", "rows", "dropped")}
        self.entry.update(totals)
        self.entry.update(completed_at=now())
        self.entry.update(seconds=round(seconds, 3), rows_in_seconds=totals["rows"] - self._rows_before)
        self._save()


def header(model: dict, hook: str, width: int, dtype: str, versions: dict) -> dict:
    """The part of a manifest that stays the same over all passes."""
    return {"schema": SCHEMA, "model": model, "hook": hook, "width": width, "dtype": dtype, "versions": versions}
