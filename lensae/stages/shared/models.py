"""The model that a set was collected from, found again."""

from __future__ import annotations

from lensae import model as models
from lensae.core.errors import LensaeError
from lensae.core.paths import SetEntry


def source_of(entry: SetEntry):
    """Where the model's files are; raises LensaeError when its weights are not the same any more."""
    described = entry.manifest.model
    source = models.resolve(described.path or described.name)
    if source.weights_digest() != described.weights_sha256:
        raise LensaeError(
            f"the weights of {described.name} have changed since {entry.name} was collected", "collect it again"
        )
    return source


def load_model_of(entry: SetEntry, hooks: list[str]):
    """The model itself, float32, with `hooks` ready."""
    return models.load(source_of(entry), hooks)
