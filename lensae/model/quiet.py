"""transformers without its progress bars and advice, which would run through our own output."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from lensae.core.process_state import undo_later


def silenced_transformers() -> ModuleType:
    """The module transformers, silent from now on; in a call of the library until its end."""
    import transformers

    logging = transformers.utils.logging
    undo_later(partial(logging.set_verbosity, logging.get_verbosity()))
    if logging.is_progress_bar_enabled():
        undo_later(logging.enable_progress_bar)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return transformers
