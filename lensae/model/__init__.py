"""The language model: the only importer of transformer_lens and transformers.

`resolve` and `load` are the way in; `LanguageModel` is what they give. Nothing here imports torch before `load`.
"""

from lensae.model.source import EMBEDDED, ModelSource, resolve

__all__ = ["EMBEDDED", "ModelSource", "load", "load_tokenizer", "resolve"]


def load(source: ModelSource, hooks=(), device: str | None = None, dtype: str = "float32", edited=()):
    """Load `source` as a `LanguageModel` on which `hooks` can be used (see `lensae.model.loading.load`)."""
    from lensae.model.loading import load as load_model

    return load_model(source, hooks, device, dtype, edited)


def load_tokenizer(source: ModelSource):
    """The tokenizer alone, as a `lensae.model.text.Text`."""
    from lensae.model.loading import load_text

    return load_text(source)
