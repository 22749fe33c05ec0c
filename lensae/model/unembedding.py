"""Losses of next-token distributions from final hidden states, the vocabulary in blocks: no (N, V) logits exist.

Shapes: N tokens, D d_model, V vocabulary, C vocabulary entries of a block, X tokens of a block, U distinct hidden
states, S variants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lensae.model.language_model import LanguageModel

# Vocabulary entries and tokens of a block of logits. On CPUs it then stays in the caches (measured on smollm2-135m);
# other devices want larger products.
CPU_ENTRIES, CPU_ROWS = 2048, 1024
DEVICE_ENTRIES, DEVICE_ROWS = 2**15, 2**10


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


def next_token_losses(
    unembedding: Unembedding, clean_ND: torch.Tensor, variants: Sequence[HiddenStates], target_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropies (1 + S, N) of the targets, the clean ones first, and KL(clean || variant) (S, N), in nats,
    in `sum_dtype`, from final hidden states.

    KL = sum p (z - z') - log sum exp z + log sum exp z' for logits z of the clean and z' of the variant's distribution,
    p = softmax(z).
    """
    sums = VocabularySums.empty(len(variants), len(clean_ND), clean_ND.device)
    for block in _slices(len(unembedding.weight_VD), _entries(clean_ND)):
        _add_block(sums, unembedding, clean_ND, variants, block)
    states = [HiddenStates(clean_ND), *variants]
    logit_SN = torch.stack([unembedding.logit_of(one.at(slice(None)), target_N) for one in states])
    return sums.log_sum_SN - logit_SN, sums.kl_SN


@dataclass
class VocabularySums:
    """Sums over the vocabulary entries so far, in `sum_dtype`: `log_sum_SN` (1 + S, N), the logarithm of the sum of
    exp(logit), of the clean model first, and `difference_SN` (S, N), the mean under its distribution over these entries
    of (clean logit - variant's logit)."""

    log_sum_SN: torch.Tensor
    difference_SN: torch.Tensor

    @classmethod
    def empty(cls, variants: int, tokens: int, device: torch.device) -> VocabularySums:
        """Before the first block."""
        dtype = sum_dtype(device)
        log_sum_SN = torch.full((1 + variants, tokens), -torch.inf, dtype=dtype, device=device)
        return cls(log_sum_SN, torch.zeros(variants, tokens, dtype=dtype, device=device))

    @property
    def kl_SN(self) -> torch.Tensor:
        """KL(clean || variant)."""
        return self.difference_SN - self.log_sum_SN[:1] + self.log_sum_SN[1:]

    def add(self, tokens: slice, log_sum_SX: torch.Tensor, difference_SX: torch.Tensor) -> None:
        """Take in the same sums over another block of entries, of some tokens."""
        before_SX = self.log_sum_SN[:, tokens]
        after_SX = torch.logaddexp(before_SX, log_sum_SX)
        share_X = (log_sum_SX[0] - after_SX[0]).exp()
        self.difference_SN[:, tokens] *= (before_SX[0] - after_SX[0]).exp()
        self.difference_SN[:, tokens] += share_X * difference_SX
        self.log_sum_SN[:, tokens] = after_SX


def _add_block(
    sums: VocabularySums,
    unembedding: Unembedding,
    clean_ND: torch.Tensor,
    variants: Sequence[HiddenStates],
    block: slice,
) -> None:
    """Take in a block of vocabulary entries."""
    logits_of = [_BlockLogits(unembedding, states, block) for states in variants]
    for tokens in _slices(len(clean_ND), _rows(clean_ND)):
        clean_XC = unembedding.logits(clean_ND[tokens], block)
        p_XC, clean_sum_X = _softmax(clean_XC)
        log_sums, differences = [clean_sum_X], []
        for variant in logits_of:
            logits_XC, log_sum_X = variant.at(tokens)
            log_sums.append(log_sum_X)
            differences.append(torch.sub(clean_XC, logits_XC, out=logits_XC).mul_(p_XC).sum(-1))
        difference_SX = torch.stack(differences) if differences else sums.difference_SN[:, tokens]
        sums.add(tokens, torch.stack(log_sums), difference_SX)


class _BlockLogits:
    """A variant's logits of a block of vocabulary entries; where tokens share hidden states they are computed once."""

    def __init__(self, unembedding: Unembedding, states: HiddenStates, block: slice):
        self.unembedding, self.states, self.block = unembedding, states, block
        self.index_N = states.index_N
        if self.index_N is not None:
            self.logits_UC = unembedding.logits(states.rows_UD, block)
            self.log_sum_U = _softmax(self.logits_UC)[1]

    def at(self, tokens: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits (X, C) after some tokens, to be overwritten, and the logarithms (X,) of the sums of their exp."""
        if self.index_N is not None:
            index_X = self.index_N[tokens]
            return self.logits_UC[index_X], self.log_sum_U[index_X]
        logits_XC = self.unembedding.logits(self.states.rows_UD[tokens], self.block)
        return logits_XC, _softmax(logits_XC)[1]


def _softmax(logits_XC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax (X, C), and the logarithm of the sum of exp(logit) (X,).

    The largest probability is 1 over the sum of exp(logit - the largest logit): PyTorch's softmax takes half as long as
    computing that sum from exp.
    """
    p_XC = logits_XC.softmax(-1)
    dtype = sum_dtype(logits_XC.device)
    return p_XC, logits_XC.amax(-1).to(dtype) - p_XC.amax(-1).to(dtype).log()


def sum_dtype(device: torch.device) -> torch.dtype:
    """The precision of sums over the vocabulary: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def _entries(x: torch.Tensor) -> int:
    return CPU_ENTRIES if x.device.type == "cpu" else DEVICE_ENTRIES


def _rows(x: torch.Tensor) -> int:
    return CPU_ROWS if x.device.type == "cpu" else DEVICE_ROWS


def _slices(length: int, size: int) -> Iterator[slice]:
    for first in range(0, length, size):
        yield slice(first, min(first + size, length))
