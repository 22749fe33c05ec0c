"""collect: a corpus through a model into activation sets, one per hook, in one pass."""

from __future__ import annotations

import importlib.metadata
import json
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lensae import model as models
from lensae.core.errors import LensaeError, UserError
from lensae.core.manifest import ModelRecord
from lensae.core.memory import keep_freed_memory, peak_memory
from lensae.core.paths import free_bytes, read_set, set_path, store_root
from lensae.core.prefetch import prefetch
from lensae.core.records import PROMPT
from lensae.corpus.prompts import Corpus
from lensae.corpus.prompts import load as load_corpus
from lensae.stages.collect.capture import Capture
from lensae.stages.collect.jobs import Job, batches, expected_tokens, jobs
from lensae.stages.collect.options import CollectOptions, CollectReport
from lensae.stages.collect.steering import Steering, find_steering
from lensae.stages.shared.processes import Process, process_group
from lensae.stages.shared.progress import Progress, Silent
from lensae.store.shard import Shard
from lensae.store.view import write_view
from lensae.store.writer import SetWriter, header

if TYPE_CHECKING:
    from lensae.model.language_model import LanguageModel
    from lensae.model.source import ModelSource


ROW_MAP_BYTES = 32  # token, document, position, characters in the text, origin, and a share of the text itself
NOT_IN_SPEC = ("model", "hooks", "dtype", "name", "corpus", "steer", "sae")  # not part of what makes passes the same

__all__ = ["CollectOptions", "CollectReport", "collect"]

CPU_BATCH, GPU_BATCH = 64, 512
PREFETCHED_BATCHES = 2  # tokenised while the model computes


def collect(options: CollectOptions, command: str, progress: Progress | None = None) -> CollectReport | None:
    """Run the pass, or resume it where it was interrupted, and return its report.

    Under torchrun the processes share the pass, each writing the documents of every `world_size`-th batch; the first
    one has the report. Raises UserError for wrong options and LensaeError when an activation does not fit
    the dtype.
    """
    keep_freed_memory()
    with process_group() as process:
        progress = (progress if process.is_first else None) or Silent()
        if process.world_size > 1 and options.corpus == "-":
            raise UserError("standard input cannot be read by several processes", "put it in a file")
        corpus = load_corpus(options.corpus, options.reading)
        source = models.resolve(options.model)
        steering = find_steering(options.steer, options.sae, source, progress)
        options = _with_defaults(options, source, steering, process)
        progress.say(f"loading {source.name}")
        model = load_model(source, options, steering, process.device)
        widths = model.widths(model.hooks)
        expected = expected_tokens(model, corpus, options)
        with ExitStack() as stack:
            writers = _open_writers(stack, model, options, corpus, steering, widths, command, process)
            complete = all(writer.complete for writer in writers)
            if not complete:
                if process.is_first:
                    _check_free_space(options, widths, expected, writers, progress)
                _record_precision(model, options, corpus, steering, writers, progress)
                _run(model, options, corpus, steering, expected, writers, progress, process)
            return _report(model, writers, complete) if process.is_first else None


def load_model(
    source: ModelSource, options: CollectOptions, steering: Steering | None, device: str | None = None
) -> LanguageModel:
    """The model of a pass, able to be edited as `steering` asks."""
    edited = [steering.hook] if steering else []
    return models.load(source, options.hooks, device, options.compute_dtype, edited)


def _with_defaults(
    options: CollectOptions, source: ModelSource, steering: Steering | None, process: Process
) -> CollectOptions:
    """The options with the batch size for the machine, and the name and the hook for the steering, filled in."""
    size = options.batch_size or (GPU_BATCH if process.device != "cpu" else CPU_BATCH)
    options = replace(options, batch_size=size)
    if steering is None:
        return options
    name = options.name or source.name + steering.suffix
    return replace(options, name=name, hooks=options.hooks or (steering.hook,))


def _open_writers(
    stack: ExitStack,
    model: LanguageModel,
    options: CollectOptions,
    corpus: Corpus,
    steering: Steering | None,
    widths: dict[str, int],
    command: str,
    process: Process,
) -> list[SetWriter]:
    model_record = _model_record(model)
    settings = {k: v for k, v in asdict(options).items() if k not in NOT_IN_SPEC}
    recorded_steering = asdict(steering) if steering else None
    spec = {"corpus": corpus.name, "corpus_sha256": corpus.sha256, **settings, "steering": recorded_steering}
    spec = json.loads(json.dumps(spec))  # tuples become lists, as they come back from the manifest
    names = ("lensae", "torch", "transformers", "transformer-lens")
    versions = {name: importlib.metadata.version(name) for name in names}

    def open_writer(hook: str, width: int) -> SetWriter:
        return SetWriter(
            set_path(options.name or model.source.name, hook),
            header(model_record, hook, width, options.dtype, versions),
            spec,
            command,
            options.shard_rows,
            _permanent_name(corpus, options),
            options.compress,
            process.rank,
            process.world_size,
        )

    if not process.is_first:
        process.barrier()  # until the first process has written the manifests
    writers = [stack.enter_context(open_writer(hook, width)) for hook, width in widths.items()]
    if process.is_first:
        process.barrier()
    process.barrier()  # no process writes before all have read the manifests
    return writers


def _model_record(model: LanguageModel) -> ModelRecord:
    source = model.source
    return ModelRecord(
        name=source.name,
        path="" if source.revision or source.name == models.EMBEDDED else str(source.path.resolve()),
        revision=source.revision,
        weights_sha256=source.weights_digest(),
        tokenizer_sha256=source.tokenizer_digest(),
        d_model=model.d_model,
        n_layers=model.n_layers,
    )


def _record_precision(
    model: LanguageModel,
    options: CollectOptions,
    corpus: Corpus,
    steering: Steering | None,
    writers: list[SetWriter],
    progress: Progress,
) -> None:
    """Measure the error of a shorter compute dtype, say it, and record it with the pass."""
    if options.compute_dtype == "float32":
        return
    from lensae.stages.collect.precision_error import relative_errors

    plain = load_model(model.source, replace(options, compute_dtype="float32"), steering, model.device)
    errors = relative_errors(model, plain, next(jobs(model, corpus, options)).ids, model.hooks)
    for writer in writers:
        writer.pass_record.relative_error = errors[writer.manifest.hook]
    worst = max(errors, key=lambda hook: errors[hook])
    progress.say(f"{options.compute_dtype}: relative error {errors[worst]:.1e} against float32 ({worst})")


def _run(
    model: LanguageModel,
    options: CollectOptions,
    corpus: Corpus,
    steering: Steering | None,
    expected: int,
    writers: list[SetWriter],
    progress: Progress,
    process: Process,
) -> None:
    # Sets of one pass may be interrupted at different shards: each writer skips the documents that it has.
    done = [writer.documents_done for writer in writers]
    capture = Capture(model, options, model.hooks, steering.edits(model.device) if steering else ())
    progress.start(f"collecting {_names(model.hooks)}", expected, "tokens")
    started, number, documents, tokens = time.perf_counter(), 0, 0, 0
    with closing(prefetch(batches(jobs(model, corpus, options), options), PREFETCHED_BATCHES)) as source:
        for batch_number, batch in enumerate(source):
            documents += len(batch)
            tokens += sum(job.tokens for job in batch)
            if batch_number % process.world_size == process.rank:
                _collect_batch(capture, batch, number, writers, done)
                number += len(batch)
            if not expected and corpus.count:
                progress.expect(max(tokens, round(tokens / documents * corpus.count)))
            progress.advance(sum(job.tokens for job in batch))
    for writer in writers:
        writer.flush()
    process.barrier()
    for writer in writers if process.is_first else ():
        if not writer.complete:
            writer.finish(started)
        if writer.pass_record.rows:
            write_view(read_set(writer.folder))
    process.barrier()


def _collect_batch(capture: Capture, batch: list[Job], number: int, writers: list[SetWriter], done: list[int]) -> None:
    """Run a batch whose first document is this process's `number`-th, unless every writer has all of it."""
    if number + len(batch) <= min(done):
        return
    for document_number, document in enumerate(capture(batch), number):
        for writer, skip in zip(writers, done, strict=True):
            if document_number >= skip and not writer.complete:
                writer.append(document)


def _permanent_name(corpus: Corpus, options: CollectOptions) -> str:
    """How the corpus can be found again from any directory: a file by its absolute path, the rest by name."""
    if isinstance(corpus.source, Path) and Path(options.corpus).is_file():
        return str(corpus.source.resolve())
    return options.corpus


def _names(hooks: tuple[str, ...]) -> str:
    return hooks[0] if len(hooks) == 1 else f"{len(hooks)} hooks"


def _check_free_space(
    options: CollectOptions, widths: dict[str, int], expected: int, writers: list[SetWriter], progress: Progress
) -> None:
    """Say how much disk space the rest of the pass may take; raise LensaeError when there is less."""
    item = 2 if options.dtype == "float16" else 4
    sizes = zip(widths.values(), writers, strict=True)
    needed = sum(max(0, expected - writer.rows_done) * (width * item + ROW_MAP_BYTES) for width, writer in sizes)
    free = free_bytes()
    if needed:
        progress.say(f"at most {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB free")
    if needed > free:
        raise LensaeError(
            f"the pass may need {needed / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free for {store_root()}/",
            "free some space, or limit the pass with --max-tokens",
        )


def _report(model: LanguageModel, writers: list[SetWriter], already_complete: bool) -> CollectReport:
    first, record = writers[0], writers[0].pass_record
    prompt_rows = 0
    for listed in first.shards_of_pass():
        with Shard(first.folder / "shards" / listed.file) as shard:
            prompt_rows += int((shard.read("origin") == PROMPT).sum())
    return CollectReport(
        model=model.name,
        hooks=model.hooks,
        paths=tuple(writer.folder for writer in writers),
        documents=record.documents,
        rows=record.rows,
        prompt_rows=prompt_rows,
        generated_rows=record.rows - prompt_rows,
        seconds=record.seconds,
        rows_in_seconds=record.rows_in_seconds,
        dropped=record.dropped,
        bytes=sum(shard.bytes for writer in writers for shard in writer.shards_of_pass()),
        peak_memory=peak_memory(),
        already_complete=already_complete,
    )
