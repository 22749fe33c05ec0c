"""transformers' own sdpa attention, with two things of ours: products that fit its size, and documents side by side.

Attention's many tiny products stay on the default library: one decoding step of 64 ragged sequences spends ten times
as long in attention when they go through oneDNN as everything else does. Long texts gain from it there too.

Inside `side_by_side(lengths)` a batch is one row in which whole documents stand one after the other, without padding;
each attends within itself.

Shapes: B batch, H heads, T tokens, N tokens of all documents, L tokens of one, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import groupby

import torch

from lensae.model.precision import precision

NAME = "sdpa_lensae"
LONG = 256  # queries from which on the setting in force pays in attention as well, by measurement
_lengths: ContextVar[tuple[int, ...] | None] = ContextVar("lengths", default=None)


def install(network) -> bool:
    """Give `network` this attention; False (and nothing done) for a model whose attention is not transformers' sdpa."""
    from transformers import AttentionInterface, AttentionMaskInterface

    if network.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    network.set_attn_implementation(NAME)
    return True


@contextmanager
def side_by_side(lengths: Sequence[int]) -> Iterator[None]:
    """Within it the one row of a batch is read as documents of `lengths` tokens."""
    token = _lengths.set(tuple(lengths))
    try:
        yield
    finally:
        _lengths.reset(token)


def _mask(*args, **kwargs):
    from transformers.masking_utils import sdpa_mask

    return None if _lengths.get() else sdpa_mask(*args, **kwargs)


def _attention(module, query, key, value, attention_mask, **kwargs):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    lengths = _lengths.get()
    if lengths is None:
        with _products_for(query.shape[2]):
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("is_causal", None)
    parts, first = [], 0
    for length, run in groupby(lengths):
        count = len(list(run))
        part = slice(first, first + count * length)
        q, k, v = (_documents(x_1HNC[:, :, part], count) for x_1HNC in (query, key, value))
        window = _window_mask(length, kwargs.get("sliding_window"), query.device)
        with _products_for(length):
            out_BLHC, _weights = sdpa_attention_forward(module, q, k, v, window, **kwargs)
        parts.append(out_BLHC.reshape(1, count * length, *out_BLHC.shape[2:]))
        first += count * length
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), None


def _products_for(length: int):
    return nullcontext() if length >= LONG else precision("highest")


def _documents(x_1HNC: torch.Tensor, count: int) -> torch.Tensor:
    """(1, H, count * L, C) as (count, H, L, C)."""
    return x_1HNC[0].unflatten(1, (count, -1)).transpose(0, 1)


def _window_mask(length: int, window: int | None, device) -> torch.Tensor | None:
    """What a sliding window of `window` tokens lets each token see; None where it lets it see everything before it."""
    if window is None or length <= window:
        return None
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen.triu(1 - window)[None, None]
