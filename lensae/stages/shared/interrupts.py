"""Ctrl-C and SIGTERM as a request to stop, which a loop checks between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


# SIGTERM can be handled on Windows but is never sent there: Ctrl-C and Ctrl-Break arrive as SIGINT and SIGBREAK.
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else []))


@contextmanager
def requested() -> Iterator[Callable[[], bool]]:
    """Give a function that returns whether a stop was requested; a second signal raises KeyboardInterrupt at once.

    Outside the main thread, which alone can handle signals, it returns False and the signals keep their handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
