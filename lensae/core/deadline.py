"""An answer within some seconds, or none: for calls to a network that may not be there."""

from __future__ import annotations

import threading
from collections.abc import Callable


def within(seconds: float, call: Callable[[], object]) -> BaseException | None:
    """Run `call` and return what it raised (None when it came through), or TimeoutError when it took too long.

    A call that is too slow is left behind in a thread that does not hold up the end of the program.
    """
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            outcome.append(None)
        except BaseException as error:  # handed to whoever waits, who says what it means
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else TimeoutError(f"no answer within {seconds:g} s")
