"""Next-token distributions over finished sequences, with and without edits.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lensae.model.generate import left_pad, origin_of
from lensae.model.language_model import Edit, LanguageModel, Taps
from lensae.model.precision import fast_matmul

LOGITS_AT_ONCE = 80_000_000


@torch.inference_mode()
def next_token_logprobs(
    model: LanguageModel,
    sequences: Sequence[Sequence[int]],
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


def scoring_batches(model: LanguageModel, sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
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
