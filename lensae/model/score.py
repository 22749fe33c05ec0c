"""Next-token distributions over finished sequences, with and without edits, and their losses.

Shapes: B batch, T tokens of a sequence (of losses: all but the first), S variants of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lensae.model.generate import left_pad, origin_of
from lensae.model.language_model import Edit, LanguageModel, Taps
from lensae.model.precision import fast_matmul

LOGITS_AT_ONCE = 80_000_000
Sequences = Sequence[Sequence[int]]  # token ids of each
Variants = Mapping[str, Sequence[Edit]]  # by name, the edits that make a variant of the model


@torch.inference_mode()
def next_token_logprobs(
    model: LanguageModel,
    sequences: Sequences,
    edits: Sequence[Edit] = (),
    prompt_lengths: Sequence[int] | None = None,
) -> list[torch.Tensor]:
    """log p of every possible next token after each token of each sequence: a (T, V) tensor per sequence.

    `prompt_lengths` tells edits which tokens were generated; without it all count as prompt.
    """
    ids_BT, mask_BT = left_pad(model, sequences)
    with fast_matmul(), Taps(model, edits=edits) as taps:
        taps.begin(origin_of(model, ids_BT, mask_BT, prompt_lengths))
        logits_BTV, _cache = model.forward(ids_BT, mask_BT, last_only=False, use_cache=False)
    width = ids_BT.shape[1]
    return [logits_BTV[b, width - len(ids) :].float().log_softmax(-1) for b, ids in enumerate(sequences)]


def scoring_batches(model: LanguageModel, sequences: Sequences) -> Iterator[list[int]]:
    """Indices of `sequences` in batches whose logits take some 300 MB at most."""
    vocabulary = int(model.config.vocab_size)
    batch: list[int] = []
    longest = 0
    for index, ids in enumerate(sequences):
        longest = max(longest, len(ids))
        if batch and (len(batch) + 1) * longest * vocabulary > LOGITS_AT_ONCE:
            yield batch
            batch, longest = [], len(ids)
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class TokenLosses:
    """Losses in nats of the tokens of one sequence but the first: `ce_ST` cross-entropies, the clean model's first, and
    `kl_ST` KL(clean || variant) of the distributions that they are drawn from, float64."""

    ce_ST: np.ndarray = field(repr=False)
    kl_ST: np.ndarray = field(repr=False)


def plain_losses(
    model: LanguageModel, variants: Variants, sequences: Sequences, advance: Callable[[int], None]
) -> Iterator[tuple[int, TokenLosses]]:
    """The plain way, open to every model and all edits: a run of the whole model for each variant."""
    for batch in scoring_batches(model, sequences):
        ids = [sequences[i] for i in batch]
        clean = next_token_logprobs(model, ids)
        targets = [torch.tensor(one[1:], device=model.device) for one in ids]
        ce = [[_cross_entropy(p, target)] for p, target in zip(clean, targets, strict=True)]
        kl: list[list[np.ndarray]] = [[] for _ in ids]
        for edits in variants.values():
            for b, q in enumerate(next_token_logprobs(model, ids, edits)):
                ce[b].append(_cross_entropy(q, targets[b]))
                kl[b].append(_kl(clean[b], q))
        advance(sum(map(len, ids)))
        for b, i in enumerate(batch):
            yield i, TokenLosses(np.stack(ce[b]), np.array(kl[b]).reshape(len(variants), -1))


def _cross_entropy(logp_TV: torch.Tensor, target_T: torch.Tensor) -> np.ndarray:
    return -logp_TV[:-1].gather(1, target_T[:, None])[:, 0].cpu().double().numpy()


def _kl(logp_TV: torch.Tensor, logq_TV: torch.Tensor) -> np.ndarray:
    return (logp_TV.exp() * (logp_TV - logq_TV)).sum(-1)[:-1].cpu().double().numpy()
