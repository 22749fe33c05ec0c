"""Losses of next-token distributions from final hidden states, the vocabulary in blocks: no (N, V) logits exist.

Shapes: N tokens, D d_model, V vocabulary, C vocabulary entries of a block, U distinct hidden states, X any number of
rows, S variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lensae.model.language_model import LanguageModel

# Vocabulary entries and logits of a block. On CPUs what is computed with a block then stays in the caches (measured on
# smollm2-135m); other devices want larger products.
CPU_ENTRIES, CPU_LOGITS = 2048, 2**19
DEVICE_ENTRIES, DEVICE_LOGITS = 2**15, 2**25


@dataclass(frozen=True)
class Unembedding:
    """logits = softcap tanh((h W^T + b) / softcap); `bias_V` and `softcap` are None for a model without them."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None
    softcap: float | None

    def logits(self, h_XD: torch.Tensor, entries: slice) -> torch.Tensor:
        """The logits (X, C) of some vocabulary entries, float32."""
        bias_C = None if self.bias_V is None else self.bias_V[entries]
        return self._capped(torch.nn.functional.linear(h_XD, self.weight_VD[entries], bias_C))

    def logit_of(self, h_ND: torch.Tensor, token_N: torch.Tensor) -> torch.Tensor:
        """The logit (N,) of one token after each hidden state, float32."""
        logit_N = (h_ND.float() * self.weight_VD[token_N].float()).sum(-1)
        return self._capped(logit_N if self.bias_V is None else logit_N + self.bias_V[token_N])

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()


def unembedding_of(model: LanguageModel) -> Unembedding | None:
    """The model's unembedding; None where its output embeddings are no linear layer.

    Families that do more to their logits than this (a scale, say) are found out by comparing losses with theirs.
    """
    layer = model.network.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        return None
    return Unembedding(layer.weight, layer.bias, getattr(model.config, "final_logit_softcapping", None))


@dataclass(frozen=True)
class HiddenStates:
    """The final hidden state of each of N tokens: `rows_UD[index_N]`, or without an index the rows themselves."""

    rows_UD: torch.Tensor
    index_N: torch.Tensor | None = None

    def at(self, tokens: slice) -> torch.Tensor:
        """Those of some tokens, one row each."""
        return self.rows_UD[tokens] if self.index_N is None else self.rows_UD[self.index_N[tokens]]


@dataclass
class LogSumExp:
    """log of the sum over the vocabulary of exp(logit), block after block: `largest_N` so far (float32), and
    `sum_N` of exp(logit - largest) (float64)."""

    largest_N: torch.Tensor
    sum_N: torch.Tensor

    @classmethod
    def empty(cls, tokens: int, device) -> LogSumExp:
        """Before the first block."""
        largest_N = torch.full((tokens,), -torch.inf, device=device)
        return cls(largest_N, torch.zeros(tokens, dtype=torch.float64, device=device))

    def add(self, tokens: slice, logits_XC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in a block of logits of some tokens: gives exp(logit - largest) (X, C), and the factor (X,) by which
        sums over earlier blocks have to be multiplied, as their largest logit was another one."""
        largest_X = torch.maximum(self.largest_N[tokens], logits_XC.amax(-1))
        factor_X = (self.largest_N[tokens] - largest_X).double().exp()
        exp_XC = (logits_XC - largest_X[:, None]).exp_()
        self.sum_N[tokens] = self.sum_N[tokens] * factor_X + exp_XC.sum(-1)
        self.largest_N[tokens] = largest_X
        return exp_XC, factor_X

    @property
    def value_N(self) -> torch.Tensor:
        """The logarithm (N,) float64."""
        return self.largest_N.double() + self.sum_N.log()


@dataclass(frozen=True)
class Sums:
    """Sums over the vocabulary: of the clean distribution, of each variant, and `difference_SN` of
    exp(clean logit - the largest) times (clean logit - variant's logit), float64."""

    clean: LogSumExp
    variants: list[LogSumExp]
    difference_SN: torch.Tensor = field(repr=False)

    def kl(self) -> torch.Tensor:
        """KL(clean || variant) (S, N) float64."""
        more = [one.value_N - self.clean.value_N for one in self.variants]
        return self.difference_SN / self.clean.sum_N + torch.stack(more) if more else self.difference_SN


def next_token_losses(
    unembedding: Unembedding, clean_ND: torch.Tensor, variants: Sequence[HiddenStates], target_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropies (1 + S, N) of the targets, the clean ones first, and KL(clean || variant) (S, N), in nats,
    float64, from final hidden states.

    KL = sum p (z - z') - log sum exp z + log sum exp z' for logits z of the clean and z' of the variant's distribution,
    p = softmax(z).
    """
    sums = _sums(unembedding, clean_ND, variants)
    states = [HiddenStates(clean_ND), *variants]
    logit_SN = torch.stack([unembedding.logit_of(one.at(slice(None)), target_N) for one in states])
    log_sum_SN = torch.stack([one.value_N for one in (sums.clean, *sums.variants)])
    return log_sum_SN - logit_SN, sums.kl()


def _sums(unembedding: Unembedding, clean_ND: torch.Tensor, variants: Sequence[HiddenStates]) -> Sums:
    tokens, vocabulary, device = len(clean_ND), len(unembedding.weight_VD), clean_ND.device
    difference_SN = torch.zeros(len(variants), tokens, dtype=torch.float64, device=device)
    empty = [LogSumExp.empty(tokens, device) for _ in range(1 + len(variants))]
    sums = Sums(empty[0], empty[1:], difference_SN)
    on_cpu = device.type == "cpu"
    entries, logits = (CPU_ENTRIES, CPU_LOGITS) if on_cpu else (DEVICE_ENTRIES, DEVICE_LOGITS)
    rows = max(1, logits // entries)
    for first in range(0, vocabulary, entries):
        block = slice(first, min(first + entries, vocabulary))
        shared = [None if one.index_N is None else unembedding.logits(one.rows_UD, block) for one in variants]
        for start in range(0, tokens, rows):
            _add_block(sums, unembedding, clean_ND, variants, shared, block, slice(start, min(start + rows, tokens)))
    return sums


def _add_block(sums: Sums, unembedding, clean_ND, variants, shared, block: slice, tokens: slice) -> None:
    """Take in some vocabulary entries after some tokens; `shared` has the logits (U, C) of variants whose hidden states
    are those of several tokens each."""
    clean_XC = unembedding.logits(clean_ND[tokens], block)
    exp_XC, factor_X = sums.clean.add(tokens, clean_XC)
    for number, (states, logits_UC) in enumerate(zip(variants, shared, strict=True)):
        if logits_UC is None:
            logits_XC = unembedding.logits(states.rows_UD[tokens], block)
        else:
            logits_XC = logits_UC[states.index_N[tokens]]
        sums.variants[number].add(tokens, logits_XC)
        difference_X = (clean_XC - logits_XC).mul_(exp_XC).sum(-1)
        sums.difference_SN[number, tokens] = sums.difference_SN[number, tokens] * factor_X + difference_X
