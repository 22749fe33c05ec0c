"""collect: a corpus through a model into activation sets, one per hook, in one pass."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from lensae import model as models
from lensae.corpus import packing
from lensae.corpus.prompts import Corpus
from lensae.corpus.prompts import load as load_corpus
from lensae.errors import UserError
from lensae.paths import set_path
from lensae.records import PROMPT
from lensae.stages.capture import Job, capture
from lensae.stages.progress import Progress, Silent
from lensae.store.schema import DTYPES
from lensae.store.shard import Shard
from lensae.store.writer import SetWriter, header

READ_CONTEXT = 512


@dataclass(frozen=True)
class CollectOptions:
    """What to collect; `hooks` empty means the middle block's residual stream."""

    model: str | None = None
    hooks: tuple[str, ...] = ()
    corpus: str = "themes"
    generate: bool = True
    chat: bool = False
    max_new_tokens: int = 96
    samples_per_prompt: int = 1
    batch_size: int = 64
    temperature: float = 0.9
    top_k: int = 50
    seed: int = 0
    dtype: str = "float16"
    name: str | None = None

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UserError(f"dtype cannot be '{self.dtype}'", "one of " + ", ".join(DTYPES))
        for field in ("samples_per_prompt", "batch_size"):
            if getattr(self, field) < 1:
                raise UserError(f"--{field.replace('_', '-')} cannot be {getattr(self, field)}", "1 or more")
        if self.generate and self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens cannot be {self.max_new_tokens}", "1 or more, or --no-generate")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed cannot be {self.seed}", "0 or more")


@dataclass(frozen=True)
class CollectReport:
    """What one pass came to; `rows` counts one hook's. `seconds` is the time of the run that finished it, which
    collected `rows_in_seconds` of them."""

    model: str
    hooks: tuple[str, ...]
    paths: tuple[Path, ...]
    documents: int
    rows: int
    prompt_rows: int
    generated_rows: int
    seconds: float
    rows_in_seconds: int
    bytes: int
    already_complete: bool

    @property
    def tokens_per_second(self) -> float:
        """Tokens of one hook collected per second."""
        return self.rows_in_seconds / self.seconds if self.seconds else 0.0


def collect(options: CollectOptions, command: str, progress: Progress | None = None) -> CollectReport:
    """Run the pass, or go on with it where an interrupted one stopped, and return what is there afterwards.

    Raises UserError for what the options get wrong and LensaeError when an activation does not fit the dtype.
    """
    progress = progress or Silent()
    corpus = load_corpus(options.corpus)
    source = models.resolve(options.model)
    progress.say(f"loading {source.name}")
    model = models.load(source, options.hooks)
    hooks = tuple(dict.fromkeys(options.hooks)) or (model.default_hook(),)
    widths = model.widths(hooks)
    jobs = list(_jobs(model, corpus, options))
    with ExitStack() as stack:
        writers = _open_writers(stack, model, options, corpus, hooks, widths, command)
        complete = all(writer.complete for writer in writers)
        if not complete:
            _run(model, options, jobs, hooks, writers, progress)
        return _report(model, hooks, writers, complete)


def _jobs(model, corpus: Corpus, options: CollectOptions) -> Iterator[Job]:
    """The documents of the pass, in order."""
    encode = model.text.encode_chat if options.chat else model.text.encode
    room = model.context - options.max_new_tokens
    stream = 0
    for prompt in corpus.prompts:
        ids = encode(corpus.prompt_text(prompt))
        if not options.generate:
            for window in packing.windows(ids, model.text.bos_id, min(READ_CONTEXT, model.context)):
                yield Job(prompt.label, window, stream)
                stream += 1
            continue
        if len(ids) > room:
            raise UserError(
                f"prompt '{prompt.id}' has {len(ids)} tokens; with {options.max_new_tokens} new ones that is more than "
                f"the {model.context} that {model.name} reads",
                "lower --max-new-tokens, or read it as plain text with --no-generate",
            )
        for _ in range(options.samples_per_prompt):
            yield Job(prompt.label, ids, stream)
            stream += 1


def _open_writers(stack: ExitStack, model, options, corpus: Corpus, hooks, widths, command: str) -> list[SetWriter]:
    source = model.source
    described = {
        "name": source.name,
        "path": "" if source.revision or source.name == models.EMBEDDED else str(source.path.resolve()),
        "revision": source.revision,
        "weights_sha256": source.weights_digest(),
        "tokenizer_sha256": source.tokenizer_digest(),
        "weights_processing": "none",
        "d_model": model.d_model,
        "n_layers": model.n_layers,
    }
    settings = {k: v for k, v in asdict(options).items() if k not in ("model", "hooks", "dtype", "name", "corpus")}
    spec = {"corpus": corpus.name, "corpus_sha256": corpus.sha256, **settings}
    versions = {
        name: importlib.metadata.version(name) for name in ("lensae", "torch", "transformers", "transformer-lens")
    }
    writers = []
    for hook in hooks:
        about = header(described, hook, widths[hook], options.dtype, versions)
        folder = set_path(options.name or source.name, hook)
        writers.append(stack.enter_context(SetWriter(folder, about, spec, command)))
    return writers


def _run(model, options: CollectOptions, jobs: list[Job], hooks, writers: list[SetWriter], progress: Progress) -> None:
    # Sets of one pass may be interrupted at different shards: each writer skips what it has.
    done = [writer.documents_done for writer in writers]
    new = options.max_new_tokens if options.generate else 0
    progress.start(f"collecting {' '.join(hooks)}", sum(len(job.ids) + new for job in jobs), "tokens")
    started, number = time.perf_counter(), 0
    for batch in _batches(jobs, options):
        if number + len(batch) > min(done):
            for place, document in enumerate(capture(model, options, batch, hooks), number):
                for writer, skip in zip(writers, done, strict=True):
                    if place >= skip and not writer.complete:
                        writer.append(document)
        number += len(batch)
        progress.advance(sum(len(job.ids) + new for job in batch))
    for writer in writers:
        if not writer.complete:
            writer.finish(time.perf_counter() - started)


def _batches(jobs: list[Job], options: CollectOptions) -> Iterator[list[Job]]:
    if options.generate:
        for start in range(0, len(jobs), options.batch_size):
            yield jobs[start : start + options.batch_size]
    else:
        size = max(1, options.batch_size * 64 // READ_CONTEXT)
        for indices in packing.batches([len(job.ids) for job in jobs], size):
            yield [jobs[i] for i in indices]


def _report(model, hooks, writers: list[SetWriter], already_complete: bool) -> CollectReport:
    first = writers[0]
    shards = [s for s in first.manifest["shards"] if s["pass"] == first.number]
    prompt_rows = 0
    for listed in shards:
        with Shard(first.folder / "shards" / listed["file"]) as shard:
            prompt_rows += int((shard.read("origin") == PROMPT).sum())
    return CollectReport(
        model.name,
        tuple(hooks),
        tuple(w.folder for w in writers),
        first.documents_done,
        first.rows_done,
        prompt_rows,
        first.rows_done - prompt_rows,
        first.entry["seconds"],
        first.entry["rows_in_seconds"],
        sum(s["bytes"] for w in writers for s in w.manifest["shards"] if s["pass"] == w.number),
        already_complete,
    )
