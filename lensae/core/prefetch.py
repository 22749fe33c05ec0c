"""An iterator whose next items are computed in a thread while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")
END = object()


def prefetch(source: Iterable[T], depth: int = 2, name: str = "prefetch") -> Generator[T, None, None]:
    """The items of `source` in order, `depth` of them computed before they are asked for, by a thread `lensae-<name>`.

    An exception in `source` is raised here, at its turn. When this generator ends or is closed, the thread has ended
    and `source` is closed. Until the next item is asked for, the current one is referenced from here as well.
    """
    items = iter(source)
    pool = ThreadPoolExecutor(1, f"lensae-{name}")
    try:
        # Each task computes one item, so that no thread ever waits for a consumer that has gone.
        pending = deque(pool.submit(next, items, END) for _ in range(depth))
        while (item := pending.popleft().result()) is not END:
            pending.append(pool.submit(next, items, END))
            yield cast(T, item)
    finally:
        pool.shutdown(cancel_futures=True)
        if isinstance(items, Generator):
            items.close()
