"""Cutting and joining texts to fit the model's context, and batching them with little padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

T = TypeVar("T")
POOL = 16  # batches whose items are sorted by length together


def windows(ids: Iterable[int], bos: int | None, context: int) -> Iterator[list[int]]:
    """`ids` (with `bos` in front, if there is one) as inputs of at most `context` tokens, each with its own BOS."""
    source = iter(ids)
    first = list(islice(source, context))
    yield first
    lead = [bos] if bos is not None and first[:1] == [bos] else []
    while rest := list(islice(source, context - len(lead))):
        yield lead + rest


def joined(documents: Iterable[tuple[str, Iterable[int]]], bos: int | None, context: int) -> Iterator[tuple]:
    """Documents (label, ids with `bos` in front), joined into inputs of exactly `context` tokens.

    Each input begins with `bos`, which also stands before every document in it; only the last may be shorter. Yields
    (label, ids): the label that all documents of an input share, or "".
    """
    lead = [bos] if bos is not None else []
    window, labels = list(lead), list[str]()
    for label, ids in documents:
        source = _body(ids, bos)
        separator = lead if len(window) > len(lead) else []
        while tokens := list(islice(source, max(1, context - len(window) - len(separator)))):
            window += separator
            if len(window) == context:  # only the BOS fitted
                yield _shared(labels), window
                window, labels = list(lead), []
            window, separator = window + tokens, []
            labels.append(label)
            if len(window) == context:
                yield _shared(labels), window
                window, labels = list(lead), []
    if len(window) > len(lead):
        yield _shared(labels), window


def _body(ids: Iterable[int], bos: int | None) -> Iterator[int]:
    source = iter(ids)
    first = next(source, bos)
    return source if first is None or first == bos else chain([first], source)


def _shared(labels: list[str]) -> str:
    return labels[0] if labels and len(set(labels)) == 1 else ""


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items in order, `size` at a time."""
    source = iter(items)
    while members := list(islice(source, size)):
        yield members


def full_batches(items: Iterable[T], tokens: int, length: Callable[[T], int], pool: int = POOL) -> Iterator[list[T]]:
    """Items of like length together, in batches of at most `tokens` tokens (or one item), padding counted.

    Lengths are sorted within pools of about `pool` batches. The order depends on the items alone, so a resumed
    pass makes the same batches.
    """
    members: list[T] = []
    total = 0
    for item in items:
        members.append(item)
        total += length(item)
        if total >= tokens * pool:
            yield from _of_like_length(members, tokens, length)
            members, total = [], 0
    yield from _of_like_length(members, tokens, length)


def _of_like_length(members: list[T], tokens: int, length: Callable[[T], int]) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in sorted(members, key=length):
        if batch and (len(batch) + 1) * length(item) > tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
