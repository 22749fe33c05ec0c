"""Frozen records that cross module borders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

PROMPT, GENERATED = 0, 1
ORIGINS = ("prompt", "generated")


@dataclass(frozen=True)
class Prompt:
    """One text of a corpus."""

    id: str
    text: str
    label: str = ""


@dataclass(frozen=True)
class ReadOptions:
    """How a corpus file is read: the columns that hold the text and the label, and whether a .txt file's documents
    are its lines (True), its blank-line blocks (False), or blocks unless it has no blank line (None)."""

    text_column: str = "text"
    label_column: str = "label"
    lines: bool | None = None


@dataclass(frozen=True)
class TokenSpan:
    """The token under one activation row: `text[start:end]` of its document."""

    token_id: int
    document: int
    position: int
    origin: int
    start: int
    end: int


@dataclass(frozen=True)
class CapturedDocument:
    """What one document of a collection pass adds to the store.

    The arrays all have one entry per stored row (R); `activations` maps hook -> (R, width) float32.
    `input_ids` is the whole input of the model, special tokens included, so that it can be run again exactly;
    `dropped` counts tokens left out because their activations could not be stored.
    """

    text: str
    prompt: str
    label: str
    input_ids: np.ndarray
    token_id: np.ndarray
    position: np.ndarray
    origin: np.ndarray
    char_start: np.ndarray
    char_end: np.ndarray
    activations: Mapping[str, np.ndarray]
    dropped: int = 0


@dataclass(frozen=True)
class StoredDocument:
    """One document as it lies in a shard; `rows` is its half-open range of rows inside that shard."""

    shard: int
    index: int
    text: str
    prompt: str
    label: str
    rows: tuple[int, int]
    input_ids: np.ndarray


@dataclass(frozen=True)
class Fault:
    """Damage that verification found: the file, the part of it as far as that can be determined, and what is wrong."""

    file: str
    where: str
    what: str


@dataclass(frozen=True)
class Posting:
    """One firing of a feature: a row of a shard and the feature's activation there."""

    shard: int
    row: int
    value: float


@dataclass(frozen=True)
class Example:
    """A posting with its text: `text[start:end]` is the firing token, `copies` how often the context was stored."""

    value: float
    shard: int
    row: int
    document: int
    span: TokenSpan
    text: str
    label: str
    prompt: str
    copies: int = 1

    @property
    def token(self) -> str:
        """The firing token's text."""
        return self.text[self.span.start : self.span.end]

    def snippet(self, before: int = 80, after: int = 40) -> tuple[str, str, str]:
        """The text around the firing token: at most `before` characters, the token, at most `after` characters."""
        start, end = self.span.start, self.span.end
        return self.text[max(0, start - before) : start], self.text[start:end], self.text[end : end + after]


@dataclass(frozen=True)
class FeatureStats:
    """How one feature behaves over a set: `density` is the share of tokens on which it fires, `mean` its mean there."""

    feature: int
    count: int
    density: float
    mean: float
    max: float
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True)
class LabelScore:
    """How well a feature tells one label from the rest.

    `share` is the label's part of the feature's total activation after each label is given equal weight, `auroc` the
    area under the ROC curve of "this document has the label" by the feature's largest activation in the document.
    """

    feature: int
    label: str
    share: float
    auroc: float
    documents: int


@dataclass(frozen=True)
class Generation:
    """One text a model wrote: the prompt, its continuation, and the tokens of both (special ones included)."""

    prompt: str
    continuation: str
    prompt_ids: list[int] = field(repr=False)
    new_ids: list[int] = field(repr=False)


@dataclass(frozen=True)
class CorpusStats:
    """Counts over a corpus; `tokens` is None when no tokenizer was given."""

    name: str
    prompts: int
    words: int
    words_mean: float
    words_min: int
    words_max: int
    labels: tuple[tuple[str, int], ...]
    content_words: tuple[tuple[str, int], ...]
    template: str
    tokens: int | None = None
    tokens_mean: float | None = None
