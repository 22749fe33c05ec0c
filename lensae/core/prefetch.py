"""An iterator whose next items are made in a thread while the current one is used."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Full, Queue
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.1


def prefetch(source: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The items of `source` in order, at most `depth` of them made before they are asked for.

    What goes wrong in `source` is raised here, in its turn. The thread ends when this generator is closed.
    """
    queue: Queue = Queue(maxsize=depth)
    closed = threading.Event()

    def put(entry: tuple) -> None:
        while not closed.is_set():
            try:
                return queue.put(entry, timeout=POLL_S)
            except Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put((item, None))
                if closed.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join()
