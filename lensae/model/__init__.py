"""The language model: the only importer of transformer_lens and transformers.

`resolve` and `load` are the way in; `LanguageModel` is what they give. Nothing here imports torch before `load`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lensae.model.source import EMBEDDED, ModelSource, resolve

if TYPE_CHECKING:
    from lensae.model.language_model import LanguageModel
    from lensae.model.text import Text

__all__ = ["EMBEDDED", "ModelSource", "load", "load_tokenizer", "resolve"]


def load(
    source: ModelSource,
    hooks: Sequence[str] = (),
    device: str | None = None,
    dtype: str = "float32",
    edited: Sequence[str] = (),
) -> LanguageModel:
    """Load `source` as a `LanguageModel` on which `hooks` can be used (see `lensae.model.loading.load`)."""
    from lensae.model.loading import load as load_model

    return load_model(source, hooks, device, dtype, edited)


def load_tokenizer(source: ModelSource) -> Text:
    """The tokenizer alone, as a `lensae.model.text.Text`."""
    from lensae.model.loading import load_text

    return load_text(source)
