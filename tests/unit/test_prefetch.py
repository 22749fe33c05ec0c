"""Prefetching: the same items in the same order, computed before they are asked for."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from lensae.core.prefetch import prefetch


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lensae-")]


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
def test_the_same_items_in_order(depth):
    assert list(prefetch(range(20), depth)) == list(range(20)) and not threads()
    assert list(prefetch([], depth)) == [] and list(prefetch(iter([None, None]), depth)) == [None, None]


def test_items_are_computed_while_one_is_used():
    made: list[int] = []

    def source():
        for number in itertools.count():
            made.append(number)
            yield number

    items = prefetch(source(), depth=3)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3], "three more than were asked for"
    items.close()


def test_an_exception_comes_at_its_turn():
    def source():
        yield 1
        yield 2
        raise KeyError("gone")

    items = prefetch(source(), depth=3)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(KeyError, match="gone"):
        next(items)
    assert not threads()


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_ends_the_thread_and_the_source(taken):
    closed = []

    def source():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    items = prefetch(source())
    for _ in range(taken):
        next(items)
    items.close()
    assert not threads() and closed == ([True] if taken else []), "a source that was never begun has nothing to end"
