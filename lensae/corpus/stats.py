"""Statistics of a corpus: words, labels, tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from statistics import mean

from lensae.core.records import CorpusStats
from lensae.corpus.prompts import Corpus

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
FUNCTION_WORDS = frozenset(
    """
    a about above after again against all almost along already also although always am among an and another any
    are around as at away back be became because been before began behind being below between both but by came can
    cannot could did do does doing done down during each either else enough even ever every few first for from
    further get gets getting go goes going gone got had has have having he her here hers herself him himself his
    how however i if in into is it its itself just keep kept last least less let like made make makes making many
    may me might mine more most much must my myself near never new next no nor not nothing now of off often on
    once one only onto or other our ours out over own per put rather same say says said see seen several shall she
    should since so some something still such take takes than that the their them themselves then there these they
    thing things this those though three through to together too toward towards two under until up upon us use
    used very was way we well went were what whatever when where whether which while who whole whom whose why will
    with within without would yet you your yours yourself i'm i've it's don't doesn't didn't isn't wasn't can't
    couldn't that's there's they're we're you're i'd i'll he'd she'd won't
    """.split()
)


def words(text: str) -> list[str]:
    """The words of `text`, in lower case."""
    return WORD.findall(text.lower())


def content_words(text: str) -> list[str]:
    """The words of `text` that carry a subject: function words and single letters left out."""
    return [word for word in words(text) if len(word) > 1 and word.replace("’", "'") not in FUNCTION_WORDS]


def describe(corpus: Corpus, count_tokens: Callable[[str], int] | None = None, most: int = 15) -> CorpusStats:
    """Count `corpus`; `count_tokens(text)` gives the tokens of one text, as the model reads it."""
    lengths: list[int] = []
    tokens: list[int] = []
    frequent: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for prompt in corpus:
        lengths.append(len(prompt.text.split()))
        frequent.update(set(content_words(prompt.text)))
        labels.update([prompt.label] if prompt.label else [])
        if count_tokens:
            tokens.append(count_tokens(corpus.prompt_text(prompt)))
    return CorpusStats(
        corpus.name,
        len(lengths),
        sum(lengths),
        mean(lengths),
        min(lengths),
        max(lengths),
        tuple(labels.most_common()),
        tuple(frequent.most_common(most)),
        corpus.template,
        sum(tokens) if tokens else None,
        mean(tokens) if tokens else None,
    )
