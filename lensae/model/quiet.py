"""transformers without its progress bars and advice, which would run through our own output."""

import transformers

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

__all__ = ["transformers"]
