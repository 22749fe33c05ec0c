"""Threads that each do a part of the work on their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(call: Callable[[T], R], items: Sequence[T], most: int) -> Generator[R, None, None]:
    """The results of `call` in order of the items, made by at most `most` threads that share those of torch.

    A call in each thread is faster than one call after the other with all threads: what cannot be divided does not keep
    the others waiting. Few results are made before they are asked for. What goes wrong in a thread is raised here.
    """
    with _pool(most) as (pool, count):
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _pool(most: int) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads with a share each of those that torch may use, and their number."""
    import torch

    threads = torch.get_num_threads()
    count = max(1, min(threads, most))
    pool = ThreadPoolExecutor(count, "lensae-index")
    torch.set_num_threads(threads // count)
    try:
        yield pool, count
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
