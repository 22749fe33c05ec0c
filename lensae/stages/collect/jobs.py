"""The documents of a collection pass before they are run, as a stream: memory does not grow with the corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lensae.core.errors import UserError
from lensae.corpus import packing
from lensae.corpus.prompts import Corpus

if TYPE_CHECKING:
    from lensae.model.language_model import LanguageModel
    from lensae.stages.collect.options import CollectOptions


READ_TOKENS = 32  # tokens in a batch of texts for each prompt that a batch would have: 2,048 by default


@dataclass(frozen=True)
class Job:
    """One document to collect: its label, the tokens the model reads, how many it may add, and the number of its random
    stream."""

    label: str
    ids: list[int]
    new: int
    stream: int

    @property
    def tokens(self) -> int:
        """The largest number of tokens that the document can have."""
        return len(self.ids) + self.new


def jobs(model: LanguageModel, corpus: Corpus, options: CollectOptions) -> Iterator[Job]:
    """The documents of the pass in order, up to `options.max_tokens`.

    Raises UserError for a prompt that leaves no room for what is to be generated.
    """
    total = 0
    for job in _prompts(model, corpus, options) if options.generate else _texts(model, corpus, options):
        total += job.tokens
        if options.max_tokens is not None and total > options.max_tokens:
            return
        yield job


def _prompts(model: LanguageModel, corpus: Corpus, options: CollectOptions) -> Iterator[Job]:
    encode = model.text.encode_chat if options.chat else model.text.encode
    new, stream = options.max_new_tokens, 0
    for prompt in corpus:
        ids = encode(corpus.prompt_text(prompt))
        if len(ids) + new > model.context:
            raise UserError(
                f"prompt '{prompt.id}' has {len(ids)} tokens; with {new} new ones that is more than the "
                f"{model.context} that {model.name} reads",
                "lower --max-new-tokens, or read it as plain text with --no-generate",
            )
        for _ in range(options.samples_per_prompt):
            yield Job(prompt.label, ids, new, stream)
            stream += 1


def _texts(model: LanguageModel, corpus: Corpus, options: CollectOptions) -> Iterator[Job]:
    context = min(options.context, model.context)
    encode = model.text.encode_chat if options.chat else model.text.stream
    texts = ((prompt.label, encode(corpus.prompt_text(prompt))) for prompt in corpus)
    if options.join:
        inputs = packing.joined(texts, model.text.bos_id, context)
    else:
        inputs = ((label, w) for label, ids in texts for w in packing.windows(ids, model.text.bos_id, context))
    for stream, (label, ids) in enumerate(inputs):
        yield Job(label, ids, 0, stream)


def batches(source: Iterator[Job], options: CollectOptions) -> Iterator[list[Job]]:
    """Prompts `options.batch_size` at a time (set by then); texts that are only read by their tokens."""
    size = options.batch_size or 1
    if options.generate:
        return packing.batches(source, size)
    return packing.full_batches(source, size * READ_TOKENS, lambda job: len(job.ids))


def expected_tokens(model: LanguageModel, corpus: Corpus, options: CollectOptions) -> int:
    """The most tokens that the pass can come to, also the check that every prompt fits; 0 when it would take a
    reading of the whole text to know."""
    if options.generate and corpus.count is not None:
        return sum(job.tokens for job in jobs(model, corpus, options))
    return options.max_tokens or 0
