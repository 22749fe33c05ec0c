"""The model from which a set was collected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lensae import model as models
from lensae.core.errors import LensaeError
from lensae.core.paths import SetEntry

if TYPE_CHECKING:
    from lensae.model.language_model import LanguageModel
    from lensae.model.source import ModelSource


def source_of(entry: SetEntry) -> ModelSource:
    """The files of the model; raises LensaeError when its weights have changed since."""
    described = entry.manifest.model
    source = models.resolve(described.path or described.name)
    if source.weights_digest() != described.weights_sha256:
        raise LensaeError(
            f"the weights of {described.name} have changed since {entry.name} was collected", "collect it again"
        )
    return source


def load_model_of(entry: SetEntry, hooks: list[str]) -> LanguageModel:
    """The loaded model, in float32, with `hooks` ready for use."""
    return models.load(source_of(entry), hooks)
