"""collect: a corpus through a model into activation sets, one per hook, in one pass."""

from __future__ import annotations

import importlib.metadata
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from lensae import model as models
from lensae.corpus.prompts import Corpus
from lensae.corpus.prompts import load as load_corpus
from lensae.errors import LensaeError, UserError
from lensae.paths import free_bytes, read_set, set_path, store_root
from lensae.records import PROMPT, ReadOptions
from lensae.stages.capture import capture
from lensae.stages.jobs import batches, expected_tokens, jobs
from lensae.stages.progress import Progress, Silent
from lensae.store.schema import DTYPES
from lensae.store.shard import Shard
from lensae.store.view import write_view
from lensae.store.writer import SetWriter, header

ROW_MAP_BYTES = 32  # token, document, position, place in the text, origin, and a share of the text itself
UNSPECIFIC = ("model", "hooks", "dtype", "name", "corpus")  # not part of what makes two passes the same


@dataclass(frozen=True)
class CollectOptions:
    """What to collect; `hooks` empty means the middle block's residual stream."""

    model: str | None = None
    hooks: tuple[str, ...] = ()
    corpus: str = "themes"
    generate: bool = True
    chat: bool = False
    text_column: str = "text"
    label_column: str = "label"
    lines: bool | None = None
    context: int = 512
    max_tokens: int | None = None
    max_new_tokens: int = 96
    samples_per_prompt: int = 1
    batch_size: int = 64
    temperature: float = 0.9
    top_k: int = 50
    seed: int = 0
    dtype: str = "float16"
    shard_rows: int | None = None
    skip_bad: bool = False
    name: str | None = None

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UserError(f"dtype cannot be '{self.dtype}'", "one of " + ", ".join(DTYPES))
        for field in ("samples_per_prompt", "batch_size", "max_tokens", "shard_rows"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise UserError(f"--{field.replace('_', '-')} cannot be {getattr(self, field)}", "1 or more")
        if self.generate and self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens cannot be {self.max_new_tokens}", "1 or more, or --no-generate")
        if self.context < 2:
            raise UserError(f"--context cannot be {self.context}", "2 or more")
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
    dropped: int
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
    corpus = load_corpus(options.corpus, ReadOptions(options.text_column, options.label_column, options.lines))
    source = models.resolve(options.model)
    progress.say(f"loading {source.name}")
    model = models.load(source, options.hooks)
    widths = model.widths(model.hooks)
    expected = expected_tokens(model, corpus, options)
    with ExitStack() as stack:
        writers = _open_writers(stack, model, options, corpus, widths, command)
        complete = all(writer.complete for writer in writers)
        if not complete:
            _check_room(options, widths, expected, writers, progress)
            _run(model, options, corpus, expected, writers, progress)
            for writer in writers:
                if writer.rows_done:
                    write_view(read_set(writer.folder))
        return _report(model, writers, complete)


def _open_writers(stack: ExitStack, model, options, corpus: Corpus, widths, command: str) -> list[SetWriter]:
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
    settings = {k: v for k, v in asdict(options).items() if k not in UNSPECIFIC}
    spec = {"corpus": corpus.name, "corpus_sha256": corpus.sha256, **settings}
    versions = {
        name: importlib.metadata.version(name) for name in ("lensae", "torch", "transformers", "transformer-lens")
    }
    writers = []
    for hook, width in widths.items():
        about = header(described, hook, width, options.dtype, versions)
        folder = set_path(options.name or source.name, hook)
        writers.append(
            stack.enter_context(
                SetWriter(folder, about, spec, command, options.shard_rows, _lasting_name(corpus, options))
            )
        )
    return writers


def _run(model, options: CollectOptions, corpus: Corpus, expected: int, writers: list[SetWriter], progress) -> None:
    # Sets of one pass may be interrupted at different shards: each writer skips what it has.
    done = [writer.documents_done for writer in writers]
    progress.start(f"collecting {_names(model.hooks)}", expected, "tokens")
    started, number, tokens = time.perf_counter(), 0, 0
    for batch in batches(jobs(model, corpus, options), options):
        if number + len(batch) > min(done):
            for place, document in enumerate(capture(model, options, batch, model.hooks), number):
                for writer, skip in zip(writers, done, strict=True):
                    if place >= skip and not writer.complete:
                        writer.append(document)
        number += len(batch)
        tokens += sum(job.tokens for job in batch)
        if not expected and corpus.count:
            progress.expect(max(tokens, round(tokens / number * corpus.count)))
        progress.advance(sum(job.tokens for job in batch))
    for writer in writers:
        if not writer.complete:
            writer.finish(started)


def _lasting_name(corpus: Corpus, options: CollectOptions) -> str:
    """How the corpus can be found again from anywhere: a file by its whole path, the rest by name."""
    is_file = isinstance(corpus.source, Path) and Path(options.corpus).is_file()
    return str(corpus.source.resolve()) if is_file else options.corpus


def _names(hooks: tuple[str, ...]) -> str:
    return hooks[0] if len(hooks) == 1 else f"{len(hooks)} hooks"


def _check_room(options: CollectOptions, widths: dict[str, int], expected: int, writers, progress: Progress) -> None:
    """Say how much room what is left of the pass may take; raise LensaeError when it is plainly not there."""
    item = 2 if options.dtype == "float16" else 4
    sizes = zip(widths.values(), writers, strict=True)
    needed = sum(max(0, expected - writer.rows_done) * (width * item + ROW_MAP_BYTES) for width, writer in sizes)
    free = free_bytes()
    if needed:
        progress.say(f"at most {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB free")
    if needed > free:
        raise LensaeError(
            f"the pass may need {needed / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free for {store_root()}/",
            "make room, or bound it with --max-tokens",
        )


def _report(model, writers: list[SetWriter], already_complete: bool) -> CollectReport:
    first = writers[0]
    shards = [s for s in first.manifest["shards"] if s["pass"] == first.number]
    prompt_rows = 0
    for listed in shards:
        with Shard(first.folder / "shards" / listed["file"]) as shard:
            prompt_rows += int((shard.read("origin") == PROMPT).sum())
    return CollectReport(
        model.name,
        model.hooks,
        tuple(w.folder for w in writers),
        first.documents_done,
        first.rows_done,
        prompt_rows,
        first.rows_done - prompt_rows,
        first.entry["seconds"],
        first.entry["rows_in_seconds"],
        first.entry["dropped"],
        sum(s["bytes"] for w in writers for s in w.manifest["shards"] if s["pass"] == w.number),
        already_complete,
    )
