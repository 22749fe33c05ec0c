"""From a job to the document that the store keeps: run the model, drop special tokens, place the rest in the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lensae.errors import LensaeError
from lensae.records import GENERATED, PROMPT, CapturedDocument
from lensae.stages.jobs import Job


def capture(model, options, batch: list[Job], hooks) -> Iterator[CapturedDocument]:
    """Run one batch under the options of a pass; raises LensaeError for activations that cannot be stored."""
    from lensae.model.generate import Sampling, generate, read

    if options.generate:
        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_k, options.seed)
        written = generate(model, [j.ids for j in batch], sampling, [j.stream for j in batch], hooks)
    else:
        written = read(model, [j.ids for j in batch], hooks)
    for job, result in zip(batch, written, strict=True):
        document = _document(model, job, result, options.generate)
        yield storable(document, options.dtype, options.skip_bad)


def _document(model, job: Job, result, generated: bool) -> CapturedDocument:
    """Drop special tokens and keep where every other one stands in the text.

    The prompt is the part of the text that the model read, its chat template included; plain text has none.
    """
    ids = np.array(result.ids, np.int64)
    text, start, end = model.text.spans(result.ids)
    keep = ~np.isin(ids, list(model.text.special_ids))
    position = np.arange(len(ids))
    origin = np.where(position < len(job.ids), PROMPT, GENERATED)
    prompt = text[: end[len(job.ids) - 1]] if generated else ""
    return CapturedDocument(
        text,
        prompt,
        job.label,
        ids,
        ids[keep],
        position[keep],
        origin[keep],
        start[keep],
        end[keep],
        {hook: x[keep] for hook, x in result.activations.items()},
    )


def storable(document: CapturedDocument, dtype: str, skip_bad: bool) -> CapturedDocument:
    """The document if all its activations are finite and fit `dtype`; with `skip_bad`, less the rows that do not.

    Otherwise raises LensaeError naming the hook, the value and the place.
    """
    good = np.ones(len(document.token_id), bool)
    for x in document.activations.values():
        good &= (np.abs(x) <= float(np.finfo(dtype).max)).all(1)
    if good.all():
        return document
    if not skip_bad:
        _refuse(document, dtype, int(np.argmin(good)))
    rows = ("token_id", "position", "origin", "char_start", "char_end")
    kept = {name: getattr(document, name)[good] for name in rows}
    activations = {hook: x[good] for hook, x in document.activations.items()}
    return replace(document, **kept, activations=activations, dropped=int((~good).sum()))


def _refuse(document: CapturedDocument, dtype: str, row: int) -> None:
    place = f"at token {document.position[row]} of '{document.text[:40]}...'"
    for hook, x in document.activations.items():
        largest = float(np.abs(x[row]).max())
        if not np.isfinite(largest):
            raise LensaeError(f"{hook} is not finite {place}", "--skip-bad leaves such tokens out and counts them")
        if largest > float(np.finfo(dtype).max):
            hint = "give --dtype float32, or --skip-bad to leave such tokens out"
            raise LensaeError(f"{hook} reaches {largest:,.0f} {place}, which {dtype} cannot hold", hint)
