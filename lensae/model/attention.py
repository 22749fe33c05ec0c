"""transformers' own sdpa attention, with two changes: products in the library that suits their size, and documents
side by side.

Attention's many tiny products stay on the default library: one decoding step of 64 ragged sequences spends ten times
as long in attention when they go through oneDNN, as all other products do. The products of long texts use oneDNN too.

Inside `side_by_side(lengths)` whole documents stand one after the other in each row of a batch, without padding, in all
rows alike; each attends within itself. On CPUs this file computes it, a block of queries against the keys up to its
end at a time: it takes 59 to 74 % of the time of PyTorch's function (128 to 512 tokens), in float32 whatever the type
of the model.

Shapes: B batch, H heads, G heads of keys and values, R = H / G, T tokens, N tokens of all documents of a row,
L tokens of one, C channels of a head, Q queries of a block, K keys, X = B G, Y = R Q.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import groupby

import torch

from lensae.model.precision import precision

NAME = "sdpa_lensae"
QUERIES = 128  # of a block, by measurement
ALTERING = {"softcap", "s_aux", "position_bias", "head_mask"}  # what makes a family's attention another one
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
    """Within it every row of a batch is read as documents of `lengths` tokens."""
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
        q, k, v = (_documents(x_BHNC[:, :, part], count) for x_BHNC in (query, key, value))
        window = _window_mask(length, kwargs.get("sliding_window"), query.device)
        if window is None and _plain(query, kwargs):
            out_BLHC = causal(q, k, v, kwargs.get("scaling")).transpose(1, 2)
        else:
            with _products_for(length):
                out_BLHC, _weights = sdpa_attention_forward(module, q, k, v, window, **kwargs)
        parts.append(out_BLHC.reshape(len(query), count * length, *out_BLHC.shape[2:]))
        first += count * length
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), None


def _plain(query: torch.Tensor, kwargs: dict) -> bool:
    """Whether this is nothing but softmax(q k / sqrt(C)) v, on a CPU."""
    return query.device.type == "cpu" and not kwargs.get("dropout") and not (ALTERING & _given(kwargs))


def _given(kwargs: dict) -> set[str]:
    return {name for name, value in kwargs.items() if value is not None}


def causal(
    q_BHLC: torch.Tensor, k_BGLC: torch.Tensor, v_BGLC: torch.Tensor, scaling: float | None = None
) -> torch.Tensor:
    """softmax(q k scaling) v (B, H, L, C), every token attending to itself and those before; `scaling` is 1 / sqrt(C).

    The query heads that share keys and values stand one below the other in one product.
    """
    B, H, L, C = q_BHLC.shape
    G = k_BGLC.shape[1]
    scaled = q_BHLC.float() * (C**-0.5 if scaling is None else scaling)
    q_XRLC = scaled.reshape(B * G, H // G, L, C)
    k_XLC, v_XLC = (x.float().reshape(B * G, L, C) for x in (k_BGLC, v_BGLC))
    out_XRLC = torch.empty_like(q_XRLC)
    later_QQ = torch.full((QUERIES, QUERIES), -torch.inf).triu(1)
    for first in range(0, L, QUERIES):
        last = min(first + QUERIES, L)
        block_XYC = q_XRLC[:, :, first:last].reshape(B * G, -1, C)
        with _products_for(LONG if last - first == QUERIES else 0):
            score_XYK = torch.bmm(block_XYC, k_XLC[:, :last].transpose(1, 2))
            score_XYK.view(B * G, -1, last - first, last)[..., first:] += later_QQ[: last - first, : last - first]
            found_XYC = torch.bmm(score_XYK.softmax(-1), v_XLC[:, :last])
        out_XRLC[:, :, first:last] = found_XYC.view(B * G, -1, last - first, C)
    return out_XRLC.view(B, H, L, C).to(q_BHLC.dtype)


def _products_for(length: int):
    return nullcontext() if length >= LONG else precision("highest")


def _documents(x_BHNC: torch.Tensor, count: int) -> torch.Tensor:
    """(B, H, count * L, C) as (B * count, H, L, C)."""
    return x_BHNC.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)


def _window_mask(length: int, window: int | None, device) -> torch.Tensor | None:
    """What a sliding window of `window` tokens lets each token see; None where it lets it see everything before it."""
    if window is None or length <= window:
        return None
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen.triu(1 - window)[None, None]
