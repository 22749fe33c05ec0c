"""store repair: damaged shards are renamed, and exactly their documents are collected again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from lensae.core.durable import write_file
from lensae.core.errors import LensaeError, UserError
from lensae.core.locks import FolderLock
from lensae.core.manifest import ShardRecord, write_manifest
from lensae.core.memory import keep_freed_memory
from lensae.core.paths import SetEntry, read_set
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

if TYPE_CHECKING:
    from lensae.model.language_model import Edit, LanguageModel
    from lensae.model.source import ModelSource


@dataclass(frozen=True)
class Repaired:
    """One shard that was written again; `same` says whether it has the bytes that were first written."""

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
    with FolderLock(entry.path, hint="wait for it"):
        entry = read_set(entry.path)  # as it is now that nobody else can change it
        damaged = [name for name, faults in verify(entry) if faults]
        listed = [shard for shard in entry.manifest.shards if shard.file in damaged]
        if not listed:
            return []
        source = source_of(entry)
        repaired: list[Repaired] = []
        for number in sorted({shard.pass_number for shard in listed}):
            of_pass = [shard for shard in listed if shard.pass_number == number]
            recorded = _recorded_pass(entry, number, source)
            progress.start(f"collecting {len(listed)} shards again", sum(one.documents for one in listed), "documents")
            for rank in sorted({shard.rank for shard in of_pass}):
                of_rank = [shard for shard in of_pass if shard.rank == rank]
                repaired += _repair(entry, recorded, of_rank, rank, progress)
        write_manifest(entry.path, entry.manifest)
        return repaired


@dataclass(frozen=True)
class RecordedPass:
    """A pass that can be run again; `processes` of them shared it."""

    options: CollectOptions
    corpus: Corpus
    model: LanguageModel
    edits: list[Edit]
    processes: int


def _recorded_pass(entry: SetEntry, number: int, source: ModelSource) -> RecordedPass:
    """A pass with the corpus, the model and the edits it was collected with; raises UserError when any has changed."""
    record = entry.manifest.passes[number]
    spec = dict(record.spec)
    digest, _name, recorded_steering = (spec.pop(key, None) for key in ("corpus_sha256", "corpus", "steering"))
    spec |= {"hooks": (entry.manifest.hook,), "corpus": record.corpus, "dtype": entry.manifest.dtype}
    options = CollectOptions(**spec)
    corpus = load_corpus(options.corpus, options.reading)
    if corpus.sha256 != digest:
        raise UserError(f"{options.corpus} is not the text that pass {number} was collected from", "bring it back")
    steering = as_recorded(recorded_steering, source)
    model = load_model(source, options, steering)
    edits = steering.edits(model.device) if steering else []
    return RecordedPass(options, corpus, model, edits, record.processes)


def _repair(
    entry: SetEntry, recorded: RecordedPass, listed: list[ShardRecord], rank: int, progress: Progress
) -> Iterator[Repaired]:
    for shard, documents in zip(listed, _documents(entry, recorded, listed, rank, progress), strict=True):
        attrs = {"pass": shard.pass_number, "first_document": shard.first_document}
        attrs |= {"rank": rank} if recorded.processes > 1 else {}
        hook, dtype = entry.manifest.hook, entry.manifest.dtype
        data, rows = shards.image(documents, hook, dtype, attrs, recorded.options.compress)
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
    entry: SetEntry, recorded: RecordedPass, listed: list[ShardRecord], rank: int, progress: Progress
) -> Iterator[list[CapturedDocument]]:
    """The documents of each shard in `listed`, which is in the order in which its process collected them."""
    remaining = iter(listed)
    shard = next(remaining, None)
    documents: list[CapturedDocument] = []
    capture = Capture(recorded.model, recorded.options, [entry.manifest.hook], recorded.edits)
    all_batches = batches(jobs(recorded.model, recorded.corpus, recorded.options), recorded.options)
    end = 0
    for batch in islice(all_batches, rank, None, recorded.processes):
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
                    documents, shard = [], next(remaining, None)
    if shard is not None:
        raise LensaeError(f"the corpus ended before the documents of {shard.file}", "is it still the same?")
