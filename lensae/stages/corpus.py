"""corpus: statistics of a corpus, tokens included."""

from __future__ import annotations

from lensae import model as models
from lensae.core.records import CorpusStats
from lensae.corpus.prompts import load
from lensae.corpus.stats import describe


def stats(name: str, model: str | None = None) -> CorpusStats:
    """The statistics of the corpus `name`, its tokens counted with the tokenizer of `model`."""
    corpus = load(name)
    text = models.load_tokenizer(models.resolve(model))
    return describe(corpus, lambda prompt: len(text.encode(prompt)))
