"""Cutting long texts to the model's context, and batching texts of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def windows(ids: Sequence[int], bos: int | None, context: int) -> Iterator[list[int]]:
    """`ids` (with `bos` in front, when there is one) as inputs of at most `context` tokens, each with its own BOS."""
    lead = [bos] if bos is not None and len(ids) and ids[0] == bos else []
    body, room = list(ids[len(lead) :]), context - len(lead)
    for start in range(0, max(1, len(body)), room):
        yield lead + body[start : start + room]


def batches(
    items: Iterable[T], size: int, length: Callable[[T], int] | None = None, pool: int = 16
) -> Iterator[list[T]]:
    """Items in batches of `size`; with `length`, items of like length together within each pool of `pool` batches.

    The order depends on the items alone, so an interrupted pass finds the same batches again.
    """
    source = iter(items)
    while members := list(islice(source, size * pool if length else size)):
        ordered = sorted(members, key=length) if length else members
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]
