"""The conditions that steering compares: generated from the same random streams and measured alike.

Shapes: D d_model, F features, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lensae.corpus.stats import content_words
from lensae.interpret.subject import LabelModel
from lensae.stages.features import Lookup
from lensae.stages.steer.options import SteerOptions
from lensae.stages.steer.report import Condition

if TYPE_CHECKING:
    import torch

    from lensae.model.generate import Written
    from lensae.model.language_model import Edit, LanguageModel
    from lensae.sae.base import SAE
    from lensae.steering.edits import FeatureEdit


JUDGE_DOCUMENTS = 5000


class Bench:
    """Everything the conditions share."""

    def __init__(
        self, options: SteerOptions, lookup: Lookup, model: LanguageModel, sae: SAE, label: str, maximum: float
    ) -> None:
        self.options, self.lookup, self.model, self.sae, self.label = options, lookup, model, sae, label
        self.maximum = maximum
        self.hook = lookup.entry.manifest.hook
        self.prompts = [model.text.encode(p) for p in options.prompts for _ in range(options.samples)]
        self.judge = _judge(lookup) if label else None
        self.baseline_written: list[Written] = []
        self.baseline_logprobs: list[torch.Tensor] = []
        self.residual_norm = math.nan

    def feature_edit(self, feature: int, value: float) -> FeatureEdit:
        """The options' operation on `feature`."""
        from lensae.steering.edits import FeatureEdit

        return FeatureEdit(self.hook, self.sae, feature, value, self.options.operation, self.options.positions)

    def controls(self, other: int, scale: float) -> list[Condition]:
        """Another feature of like density, at the same multiple of its own maximum; and a random direction, moved
        along at each token as far as the steered feature would have moved the stream there."""
        import torch

        from lensae.steering.edits import MatchedDirection

        others_value = scale * float(self.lookup.index.table()["max"][other])
        value = scale * self.maximum
        direction = torch.randn(self.sae.d_in, generator=torch.Generator().manual_seed(self.options.seed))
        matched = MatchedDirection(self.feature_edit(self.options.feature, value), direction.to(self.model.device))
        return [
            self.run(f"control: feature {other}", scale, others_value, self.feature_edit(other, others_value)),
            self.run("control: random direction", scale, value, matched),
        ]

    def run(self, name: str, scale: float, value: float, edit: Edit | None) -> Condition:
        """Generate under `edit` (None: none) and measure."""
        from lensae.model.generate import generate
        from lensae.model.read import read

        edits = [edit] if edit is not None else []
        written = generate(
            self.model, self.prompts, self.options.sampling, range(len(self.prompts)), capture=[self.hook], edits=edits
        )
        if edit is None:
            self.baseline_written = written
            self.residual_norm = self._typical_norm(written)
            self.baseline_logprobs = self._logprobs(written, [])
        reread = read(self.model, [w.ids for w in written], [self.hook])
        texts = tuple(self.model.text.decode(w.new_ids) for w in written)
        return Condition(
            name,
            scale,
            value,
            texts,
            self._activation(written),
            self._activation(reread, written),
            self._kl(edits),
            self._perplexity(written),
            self._label_probability(texts),
        )

    def _typical_norm(self, written: list[Written]) -> float:
        return float(np.mean(np.linalg.norm(self._generated(written), axis=1)))

    def _generated(self, activations: list[Written], written: list[Written] | None = None) -> np.ndarray:
        """The captured rows of generated tokens, or, when nothing was generated, the prompts' last rows."""
        parts = []
        for a, w in zip(activations, written or activations, strict=True):
            parts.append(a.activations[self.hook][min(len(w.prompt_ids), len(w.ids) - 1) :])
        return np.concatenate(parts)

    def _activation(self, activations: list[Written], written: list[Written] | None = None) -> float:
        import torch

        with torch.inference_mode():
            x = torch.from_numpy(self._generated(activations, written)).to(self.model.device)
            return float(self.sae.encode(x)[:, self.options.feature].mean())

    def _logprobs(self, written: list[Written], edits: Sequence[Edit]) -> list[torch.Tensor]:
        """For each sequence, log p of what comes at each generated place (tokens, V)."""
        from lensae.model.score import next_token_logprobs, scoring_batches

        logprobs: dict[int, torch.Tensor] = {}
        for batch in scoring_batches(self.model, [w.ids for w in written]):
            lengths = [len(written[i].prompt_ids) for i in batch]
            results = next_token_logprobs(self.model, [written[i].ids for i in batch], edits, lengths)
            for i, length, logp in zip(batch, lengths, results, strict=True):
                logprobs[i] = logp[length - 1 : -1] if written[i].new_ids else logp[-1:]
        return [logprobs[i] for i in range(len(written))]

    def _kl(self, edits: Sequence[Edit]) -> float:
        from lensae.steering.measure import kl

        if not edits:
            return 0.0
        changed = self._logprobs(self.baseline_written, edits)
        values = [kl(p, q) for p, q in zip(self.baseline_logprobs, changed, strict=True)]
        return float(sum(v.sum() for v in values) / sum(len(v) for v in values))

    def _perplexity(self, written: list[Written]) -> float:
        import torch

        from lensae.steering.measure import cross_entropy, perplexity

        values: list[float] = []
        clean = self.baseline_logprobs if written is self.baseline_written else self._logprobs(written, [])
        for w, logp in zip(written, clean, strict=True):
            if w.new_ids:
                values += cross_entropy(logp, torch.tensor(w.new_ids, device=logp.device)).tolist()
        return perplexity(values)

    def _label_probability(self, texts: Sequence[str]) -> float:
        if self.judge is None:
            return math.nan
        return float(np.mean([self.judge.probability(text, self.label) for text in texts]))


def _judge(lookup: Lookup) -> LabelModel:
    """A label model on the set's own texts; samples of a prompt repeat it, so the prompt counts once."""
    seen: set[str] = set()
    pairs = []
    for document in lookup.reader.documents(lookup.reader.everything().spread(JUDGE_DOCUMENTS)):
        pairs.append((document.text[len(document.prompt) :], document.label))
        if document.prompt and document.prompt not in seen:
            seen.add(document.prompt)
            pairs.append((document.prompt, document.label))
    return LabelModel(pairs, content_words)
