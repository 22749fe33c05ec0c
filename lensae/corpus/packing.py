"""Cutting long texts to the model's context, and batching texts of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def windows(ids: Sequence[int], bos: int | None, context: int) -> Iterator[list[int]]:
    """`ids` (with `bos` in front, when there is one) as inputs of at most `context` tokens, each with its own BOS."""
    lead = [bos] if bos is not None and len(ids) and ids[0] == bos else []
    body, room = list(ids[len(lead) :]), context - len(lead)
    for start in range(0, max(1, len(body)), room):
        yield lead + body[start : start + room]


def batches(lengths: Sequence[int], size: int, pool: int = 16) -> Iterator[list[int]]:
    """Indices of texts in batches of `size`, texts of like length together within each pool of `pool` batches.

    The order depends on the lengths alone, so an interrupted pass finds the same batches again.
    """
    for first in range(0, len(lengths), size * pool):
        members = range(first, min(first + size * pool, len(lengths)))
        ordered = sorted(members, key=lambda i: lengths[i])
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]
