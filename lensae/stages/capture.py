"""From a job to the document that the store keeps: run the model, drop special tokens, place the rest in the text."""

from __future__ import annotations

from collections.abc import Iterator

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
        check_finite(document, options.dtype)
        yield document


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


def check_finite(document: CapturedDocument, dtype: str) -> None:
    """Raise LensaeError naming the hook and the value when an activation is not finite or does not fit `dtype`."""
    for hook, x in document.activations.items():
        largest = float(np.abs(x).max(initial=0.0))
        if not np.isfinite(largest):
            at = int(document.position[np.argwhere(~np.isfinite(x).all(1))[0, 0]])
            raise LensaeError(f"{hook} is not finite at token {at} of '{document.text[:40]}...'", "check the model")
        if largest > float(np.finfo(dtype).max):
            raise LensaeError(f"{hook} reaches {largest:,.0f}, which {dtype} cannot hold", "give --dtype float32")
