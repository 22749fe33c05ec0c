"""The label that a text resembles most: multinomial naive Bayes over words, fitted on the documents of a set.

It is independent of the SAE, so it can judge the effect of steering on a text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence


class LabelModel:
    """P(label | words) with add-one smoothing and equal priors (Manning, Raghavan and Schuetze 2008, chapter 13)."""

    def __init__(self, texts: Iterable[tuple[str, str]], split: Callable[[str], Sequence[str]]):
        """`texts` are (text, label) pairs and `split` gives the words that count."""
        self.split = split
        self.counts: dict[str, Counter[str]] = {}
        for text, label in texts:
            if label:
                self.counts.setdefault(label, Counter()).update(split(text))
        self.vocabulary = set().union(*self.counts.values()) if self.counts else set()

    @property
    def labels(self) -> list[str]:
        """The labels in alphabetical order."""
        return sorted(self.counts)

    def probability(self, text: str, label: str) -> float:
        """P(label | text); words that no document contains are ignored."""
        words = [word for word in self.split(text) if word in self.vocabulary]
        logs = {name: self._log_likelihood(words, name) for name in self.labels}
        largest = max(logs.values())
        weights = {name: math.exp(value - largest) for name, value in logs.items()}
        return weights[label] / sum(weights.values())

    def _log_likelihood(self, words: Sequence[str], label: str) -> float:
        counts = self.counts[label]
        total = sum(counts.values()) + len(self.vocabulary)
        return sum(math.log((counts[word] + 1) / total) for word in words)
