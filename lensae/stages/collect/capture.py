"""From a job to a stored document: run the model, drop special tokens, find the others' positions in the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lensae.core.errors import LensaeError
from lensae.core.records import GENERATED, PROMPT, CapturedDocument
from lensae.stages.collect.jobs import Job

if TYPE_CHECKING:
    from lensae.model.generate import Written
    from lensae.model.language_model import Edit, LanguageModel
    from lensae.stages.collect.options import CollectOptions


class Capture:
    """Runs batches under the options of a pass, with `edits` applied; what is stored is then the edited stream.

    A batch that the device has no memory for is run in halves, and so is every later one.
    """

    def __init__(
        self, model: LanguageModel, options: CollectOptions, hooks: Sequence[str], edits: Sequence[Edit] = ()
    ) -> None:
        self.model, self.options, self.hooks, self.edits = model, options, list(hooks), list(edits)
        self.special = np.array(sorted(model.text.special_ids), np.int64)
        self.batch_limit: int | None = None  # documents at a time, once memory has run out
        if not options.generate:
            from lensae.model.read import ready

            ready(model)

    def __call__(self, batch: list[Job]) -> Iterator[CapturedDocument]:
        """The documents of one batch in order; raises LensaeError for activations that cannot be stored."""
        first = 0
        while first < len(batch):
            jobs = batch[first : first + (self.batch_limit or len(batch))]
            try:
                results = self._run(jobs)
            except RuntimeError as error:
                self._halve(len(jobs), error)
                continue
            for job, result in zip(jobs, results, strict=True):
                yield storable(self._document(job, result), self.options.dtype, self.options.skip_bad)
            first += len(jobs)

    def _run(self, batch: list[Job]) -> list[Written]:
        from lensae.model.generate import generate
        from lensae.model.read import read

        ids, options = [job.ids for job in batch], self.options
        if not options.generate:
            return read(self.model, ids, self.hooks, self.edits)
        return generate(self.model, ids, options.sampling, [job.stream for job in batch], self.hooks, self.edits)

    def _halve(self, size: int, error: RuntimeError) -> None:
        """Run half as many documents at a time from now on; raises if memory did not run out or there was only one."""
        from lensae.model.device_memory import is_out_of_memory, release

        if not is_out_of_memory(error):
            raise error
        if size == 1:
            raise LensaeError(f"{self.model.device} has no memory for one document", "lower --context") from error
        release()
        self.batch_limit = size // 2

    def _document(self, job: Job, result: Written) -> CapturedDocument:
        """Drop special tokens and keep the position of every other one in the text.

        The prompt is the part of the text that the model read, its chat template included; plain text has none.
        """
        ids = np.array(result.ids, np.int64)
        text, start, end = self.model.text.spans(result.ids)
        keep = _as_slice(~np.isin(ids, self.special))
        position = np.arange(len(ids))
        origin = np.where(position < len(job.ids), PROMPT, GENERATED)
        prompt = text[: end[len(job.ids) - 1]] if self.options.generate else ""
        return CapturedDocument(
            text=text,
            prompt=prompt,
            label=job.label,
            input_ids=ids,
            token_id=ids[keep],
            position=position[keep],
            origin=origin[keep],
            char_start=start[keep],
            char_end=end[keep],
            activations={hook: x[keep] for hook, x in result.activations.items()},
        )


def _as_slice(keep: np.ndarray) -> np.ndarray | slice:
    """The mask as a slice if it is contiguous: activations are then not copied."""
    kept = np.flatnonzero(keep)
    if len(kept) and kept[-1] - kept[0] + 1 == len(kept):
        return slice(int(kept[0]), int(kept[-1]) + 1)
    return keep


def storable(document: CapturedDocument, dtype: str, skip_bad: bool) -> CapturedDocument:
    """The document if all its activations are finite and fit `dtype`; with `skip_bad`, less the rows that do not.

    Otherwise raises LensaeError naming the hook, the value and the token.
    """
    largest = float(np.finfo(dtype).max)
    if all(not x.size or (x.min() >= -largest and x.max() <= largest) for x in document.activations.values()):
        return document
    good = np.ones(len(document.token_id), bool)
    for x in document.activations.values():
        good &= (np.abs(x) <= largest).all(1)
    if not skip_bad:
        _refuse(document, dtype, int(np.argmin(good)))
    rows = ("token_id", "position", "origin", "char_start", "char_end")
    kept = {name: getattr(document, name)[good] for name in rows}
    activations = {hook: x[good] for hook, x in document.activations.items()}
    return replace(document, **kept, activations=activations, dropped=int((~good).sum()))


def _refuse(document: CapturedDocument, dtype: str, row: int) -> None:
    where = f"at token {document.position[row]} of '{document.text[:40]}...'"
    for hook, x in document.activations.items():
        largest = float(np.abs(x[row]).max())
        if not np.isfinite(largest):
            raise LensaeError(f"{hook} is not finite {where}", "--skip-bad leaves such tokens out and counts them")
        if largest > float(np.finfo(dtype).max):
            hint = "give --dtype float32, or --skip-bad to leave such tokens out"
            raise LensaeError(f"{hook} reaches {largest:,.0f} {where}, which {dtype} cannot hold", hint)
