"""survey: figures of the residual stream after every block, and where to hook.

Shapes: T tokens, D d_model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from lensae import model as models
from lensae.core.errors import LensaeError, UserError
from lensae.corpus import packing
from lensae.corpus.prompts import Corpus
from lensae.corpus.prompts import load as load_corpus
from lensae.interpret.moments import Figures, Moments
from lensae.stages.shared.progress import Progress, Silent

if TYPE_CHECKING:
    from lensae.model.language_model import LanguageModel


HOOKS = "blocks.*.hook_resid_post"
CONTEXT = 512
BATCH_TOKENS = 2048
RISKY = 0.5  # of float16's range: the largest values of a larger corpus should fit too


@dataclass(frozen=True)
class Block:
    """The residual stream after one block."""

    block: int
    hook: str
    figures: Figures


@dataclass(frozen=True)
class HookChoice:
    """The hook to collect at, and why, in a sentence; `dtype` is what its activations can be stored in."""

    block: int
    hook: str
    why: str
    dtype: str


@dataclass(frozen=True)
class SurveyReport:
    """Every block in order. `tokens` counts the measured tokens; special tokens were read but not measured."""

    model: str
    corpus: str
    documents: int
    tokens: int
    d_model: int
    blocks: tuple[Block, ...]
    choice: HookChoice
    seconds: float

    @property
    def middle(self) -> range:
        """The blocks of the middle third, among which the hook is chosen."""
        return middle_third(len(self.blocks))


@dataclass(frozen=True)
class Window:
    """The part of a document that the model reads at once; `start` is the beginning of the document's text."""

    document: int
    start: str
    ids: list[int]


def survey(
    model_name: str | None = None, corpus_name: str = "themes", max_tokens: int = 4000, progress: Progress | None = None
) -> SurveyReport:
    """Read the first `max_tokens` tokens of a corpus once, measure every block's stream, and choose a hook.

    Raises UserError for wrong arguments and LensaeError for an activation that is not finite.
    """
    if max_tokens < 2:
        raise UserError(f"--max-tokens cannot be {max_tokens}", "2 or more")
    progress = progress or Silent()
    started = time.perf_counter()
    corpus, source = load_corpus(corpus_name), models.resolve(model_name)
    progress.say(f"loading {source.name}")
    model = models.load(source, (HOOKS,))
    sample = list(_windows(model, corpus, max_tokens))
    moments = _measure(model, sample, progress)
    blocks = tuple(Block(int(hook.split(".")[1]), hook, moments[hook].result()) for hook in model.hooks)
    return SurveyReport(
        model.name,
        corpus.name,
        len({window.document for window in sample}),
        blocks[0].figures.rows,
        model.d_model,
        blocks,
        choose(blocks, model.d_model),
        time.perf_counter() - started,
    )


def summary(report: SurveyReport) -> dict:
    """The report as plain values, for JSON."""
    blocks = [{"block": b.block, "hook": b.hook, **asdict(b.figures)} for b in report.blocks]
    return asdict(report) | {"blocks": blocks, "seconds": round(report.seconds, 3)}


def _windows(model: LanguageModel, corpus: Corpus, most: int) -> Iterator[Window]:
    """The corpus from its start, in windows, until they hold `most` tokens that are not special."""
    special, missing = model.text.special_ids, most
    for number, prompt in enumerate(corpus):
        text = corpus.prompt_text(prompt)
        ids = model.text.encode(text)
        for window in packing.windows(ids, model.text.bos_id, min(CONTEXT, model.context)):
            counted = [position for position, token in enumerate(window) if token not in special]
            if len(counted) >= missing:
                yield Window(number, text[:40], window[: counted[missing - 1] + 1])
                return
            missing -= len(counted)
            yield Window(number, text[:40], window)
    if most - missing < 2:
        raise UserError(f"{corpus.name} holds too little text", "a variance needs two tokens")


def _measure(model: LanguageModel, sample: list[Window], progress: Progress) -> dict[str, Moments]:
    from lensae.model.read import read

    special = list(model.text.special_ids)
    moments = {hook: Moments(width) for hook, width in model.widths(model.hooks).items()}
    progress.start(f"reading at {len(model.hooks)} hooks", sum(len(w.ids) for w in sample), "tokens")
    for batch in packing.full_batches(sample, BATCH_TOKENS, lambda window: len(window.ids)):
        results = read(model, [w.ids for w in batch], model.hooks)
        keeps = [~np.isin(result.ids, special) for result in results]
        for hook in model.hooks:
            kept = [result.activations[hook][keep] for result, keep in zip(results, keeps, strict=True)]
            _check_finite(hook, batch, kept)
            moments[hook].add(np.concatenate(kept))
        progress.advance(sum(len(w.ids) for w in batch))
    return moments


def _check_finite(hook: str, batch: list[Window], kept: list[np.ndarray]) -> None:
    for window, x_TD in zip(batch, kept, strict=True):
        if not np.isfinite(x_TD).all():
            what = f"block {hook.split('.')[1]} ({hook}) is not finite in the document '{window.start}...'"
            raise LensaeError(what, "check the model's weights")


def middle_third(n_blocks: int) -> range:
    """The blocks of the middle third of a stack, rounded outwards: 10 to 19 of 30, 2 to 5 of 8, 0 of 1."""
    return range(n_blocks // 3, -(-2 * n_blocks // 3))


def choose(blocks: tuple[Block, ...], d_model: int) -> HookChoice:
    """The block of the middle third with the highest effective rank among those whose values fit float16 easily.

    In the middle, features no longer stand for single tokens and do not yet prepare the next one. Where every block
    of that third has reached half of float16's range, all of them are considered, and float32 is advised.
    """
    third = middle_third(len(blocks))
    middle = [blocks[n] for n in third]
    safe = [b for b in middle if b.figures.float16_risk < RISKY]
    best = max(safe or middle, key=lambda b: b.figures.effective_rank)
    f = best.figures
    largest = f"{f.abs_max:,.0f}, {f.float16_risk:.1%} of what float16 can hold"
    which = f"blocks {third[0]} to {third[-1]}" if len(third) > 1 else f"block {third[0]}"
    why = (
        f"in the middle third of the stack ({which}) features are neither single tokens nor preparation of the next "
        f"one, and block {best.block} has the highest effective rank there, {f.effective_rank:.1f} of {d_model}"
    )
    if not safe:
        return HookChoice(
            best.block,
            best.hook,
            f"{why}; every block there has values of more than half of what float16 can hold (its own largest is "
            f"{largest}), so collect with --dtype float32",
            "float32",
        )
    if len(safe) < len(middle):
        why += f", of the {len(safe)} whose largest value is below half of what float16 can hold"
    return HookChoice(best.block, best.hook, f"{why}; its largest value is {largest}", "float16")
