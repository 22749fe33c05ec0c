"""A call with a time limit, for networks that may not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable


def within(seconds: float, call: Callable[[], object]) -> BaseException | None:
    """Run `call` and return the exception that it raised (None if it returned), or TimeoutError after `seconds`.

    A call that takes longer goes on in a daemon thread, which does not delay the end of the program.
    """
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            outcome.append(None)
        except BaseException as error:  # returned to the caller
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else TimeoutError(f"no answer within {seconds:g} s")
