"""store repair: damaged shards set aside, and exactly their documents collected again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from lensae.core.durable import write_file
from lensae.core.errors import LensaeError, UserError
from lensae.core.locks import FolderLock
from lensae.core.manifest import ShardRecord, write_manifest
from lensae.core.memory import keep_freed_memory
from lensae.core.paths import SetEntry
from lensae.core.records import CapturedDocument
from lensae.corpus.prompts import Corpus
from lensae.corpus.prompts import load as load_corpus
from lensae.stages.collect.capture import Capture
from lensae.stages.collect.jobs import batches, jobs
from lensae.stages.collect.options import CollectOptions
from lensae.stages.collect.run import load_model
from lensae.stages.collect.steering import as_recorded
from lensae.stages.shared.models import source_of
from lensae.stages.shared.progress import Progress, Silent
from lensae.store import shard as shards
from lensae.store.verify import verify


@dataclass(frozen=True)
class Repaired:
    """One shard made again; `same` says whether it has the bytes that were first written."""

    shard: str
    documents: int
    same: bool


def repair(entry: SetEntry, progress: Progress | None = None) -> list[Repaired]:
    """Check the set, rename each damaged shard to `<name>.bad`, and collect its documents again.

    The corpus, the model and the SAE that steered it must be the ones that were collected from; raises when they are
    not.
    """
    progress = progress or Silent()
    keep_freed_memory()
    lock = FolderLock(entry.path)
    try:
        damaged = [name for name, faults in verify(entry) if faults]
        listed = [shard for shard in entry.manifest.shards if shard.file in damaged]
        if not listed:
            return []
        source = source_of(entry)
        done: list[Repaired] = []
        for number in sorted({shard.pass_number for shard in listed}):
            of_pass = [shard for shard in listed if shard.pass_number == number]
            again = _recorded_pass(entry, number, source)
            progress.start(f"collecting {len(listed)} shards again", sum(one.documents for one in listed), "documents")
            for rank in sorted({shard.rank for shard in of_pass}):
                of_rank = [shard for shard in of_pass if shard.rank == rank]
                done += list(_repair(entry, again, of_rank, rank, progress))
        write_manifest(entry.path, entry.manifest)
        return done
    finally:
        lock.release()


@dataclass(frozen=True)
class RecordedPass:
    """A pass that can be run again: `processes` shared it."""

    options: CollectOptions
    corpus: Corpus
    model: object
    edits: list
    processes: int


def _recorded_pass(entry: SetEntry, number: int, source) -> RecordedPass:
    """A pass with what it was made from; raises UserError when any of it is something else now."""
    made = entry.manifest.passes[number]
    spec = dict(made.spec)
    digest, _name, held = (spec.pop(key, None) for key in ("corpus_sha256", "corpus", "steering"))
    asked = {"hooks": (entry.manifest.hook,), "corpus": made.corpus, "dtype": entry.manifest.dtype}
    options = CollectOptions(**spec, **asked)
    corpus = load_corpus(options.corpus, options.reading)
    if corpus.sha256 != digest:
        raise UserError(f"{options.corpus} is not the text that pass {number} was collected from", "bring it back")
    steering = as_recorded(held, source)
    model = load_model(source, options, steering)
    edits = steering.edits(model.device) if steering else []
    return RecordedPass(options, corpus, model, edits, made.processes)


def _repair(entry: SetEntry, again: RecordedPass, listed: list[ShardRecord], rank: int, progress) -> Iterator[Repaired]:
    for shard, documents in zip(listed, _documents(entry, again, listed, rank, progress), strict=True):
        attrs = {"pass": shard.pass_number, "first_document": shard.first_document}
        attrs |= {"rank": rank} if again.processes > 1 else {}
        hook, dtype = entry.manifest.hook, entry.manifest.dtype
        data, rows = shards.image(documents, hook, dtype, attrs, again.options.compress)
        path = entry.path / "shards" / shard.file
        if path.exists():
            os.replace(path, path.with_name(path.name + ".bad"))
        write_file(path, data)
        digest = hashlib.sha256(data).hexdigest()
        same = digest == shard.sha256
        shards_of_set = entry.manifest.shards
        shards_of_set[shards_of_set.index(shard)] = replace(shard, rows=rows, bytes=len(data), sha256=digest)
        yield Repaired(shard.file, shard.documents, same)


def _documents(
    entry: SetEntry, again: RecordedPass, listed: list[ShardRecord], rank: int, progress
) -> Iterator[list[CapturedDocument]]:
    """The documents of each shard in `listed` (in order of their places in what one process did of the pass)."""
    wanted = iter(listed)
    shard = next(wanted, None)
    documents: list[CapturedDocument] = []
    capture = Capture(again.model, again.options, [entry.manifest.hook], again.edits)
    all_batches = batches(jobs(again.model, again.corpus, again.options), again.options)
    end = 0
    for batch in islice(all_batches, rank, None, again.processes):
        start, end = end, end + len(batch)
        if shard is None:
            return
        if end <= shard.first_document:
            continue
        for number, document in enumerate(capture(batch), start):
            if shard is not None and number >= shard.first_document:
                documents.append(document)
                progress.advance(1)
                if len(documents) == shard.documents:
                    yield documents
                    documents, shard = [], next(wanted, None)
    if shard is not None:
        raise LensaeError(f"the corpus ended before the documents of {shard.file}", "is it still the same?")
