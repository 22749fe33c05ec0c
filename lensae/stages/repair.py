"""store repair: damaged shards set aside, and exactly their documents collected again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from lensae.corpus.prompts import load as load_corpus
from lensae.durable import write_file, write_json
from lensae.errors import LensaeError, UserError
from lensae.paths import SetEntry
from lensae.records import CapturedDocument, ReadOptions
from lensae.stages.capture import capture
from lensae.stages.collect import CollectOptions
from lensae.stages.evaluate import load_model_of
from lensae.stages.jobs import batches, jobs
from lensae.stages.progress import Progress, Silent
from lensae.store import shard as shards
from lensae.store.lock import WriterLock
from lensae.store.verify import verify


@dataclass(frozen=True)
class Repaired:
    """One shard made again; `same` says whether it has the bytes that were first written."""

    shard: str
    documents: int
    same: bool


def repair(entry: SetEntry, progress: Progress | None = None) -> list[Repaired]:
    """Check the set, rename each damaged shard to `<name>.bad`, and collect its documents again.

    The corpus and the model must be the ones that were collected from; raises when they are not.
    """
    progress = progress or Silent()
    lock = WriterLock(entry.path)
    try:
        damaged = [name for name, faults in verify(entry) if faults]
        listed = [shard for shard in entry.manifest["shards"] if shard["file"] in damaged]
        if not listed:
            return []
        model = load_model_of(entry, [entry.manifest["hook"]])
        done: list[Repaired] = []
        for number in sorted({shard["pass"] for shard in listed}):
            of_pass = [shard for shard in listed if shard["pass"] == number]
            done += list(_repair_pass(entry, model, number, of_pass, progress))
        write_json(entry.path / "manifest.json", entry.manifest)
        return done
    finally:
        lock.release()


def _repair_pass(entry: SetEntry, model, number: int, listed: list[dict], progress) -> Iterator[Repaired]:
    options, corpus = _as_it_was(entry, number)
    progress.start(f"collecting {len(listed)} shards again", sum(s["documents"] for s in listed), "documents")
    for shard, documents in zip(listed, _documents(entry, model, corpus, options, listed, progress), strict=True):
        attrs = {"pass": number, "first_document": shard["first_document"]}
        data, rows = shards.image(documents, entry.manifest["hook"], entry.manifest["dtype"], attrs)
        path = entry.path / "shards" / shard["file"]
        if path.exists():
            os.replace(path, path.with_name(path.name + ".bad"))
        write_file(path, data)
        digest = hashlib.sha256(data).hexdigest()
        same = digest == shard["sha256"]
        shard.update(rows=rows, bytes=len(data), sha256=digest)
        yield Repaired(shard["file"], shard["documents"], same)


def _as_it_was(entry: SetEntry, number: int):
    """The options and the corpus of a pass; raises UserError when the corpus is another one now."""
    made = entry.manifest["passes"][number]
    spec = dict(made["spec"])
    digest, _name = spec.pop("corpus_sha256"), spec.pop("corpus")
    options = CollectOptions(**spec, corpus=made["corpus"], dtype=entry.manifest["dtype"])
    corpus = load_corpus(options.corpus, ReadOptions(options.text_column, options.label_column, options.lines))
    if corpus.sha256 != digest:
        raise UserError(f"{options.corpus} is not the text that pass {number} was collected from", "bring it back")
    return options, corpus


def _documents(entry: SetEntry, model, corpus, options, listed, progress) -> Iterator[list[CapturedDocument]]:
    """The documents of each shard in `listed` (in order of their places in the pass)."""
    wanted = iter(listed)
    shard = next(wanted, None)
    found: list[CapturedDocument] = []
    place = 0
    for batch in batches(jobs(model, corpus, options), options):
        first, place = place, place + len(batch)
        if shard is None:
            return
        if place <= shard["first_document"]:
            continue
        for at, document in enumerate(capture(model, options, batch, [entry.manifest["hook"]]), first):
            if shard is not None and at >= shard["first_document"]:
                found.append(document)
                progress.advance(1)
                if len(found) == shard["documents"]:
                    yield found
                    found, shard = [], next(wanted, None)
    if shard is not None:
        raise LensaeError(f"the corpus ended before the documents of {shard['file']}", "is it still the same?")
