"""Open a language model up: collect activations, train sparse autoencoders, read and steer their features.

    store = lensae.Store("runs")
    lensae.collect(store)
    lensae.train(store)
    lensae.build_index(store)
    features = lensae.Features(store)
    lensae.steer(store, feature=features.list()[0].feature)

docs/api.md shows each name with an example. A name is imported when it is first used, and nothing heavy before that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lensae._api.calls import build_index, collect, evaluate, load_sae, steer, train
    from lensae._api.features import Features
    from lensae._api.store import Store
    from lensae.core.errors import DamagedError, LensaeError, UserError
    from lensae.core.recipe import TrainRecipe
    from lensae.sae.base import SAE

__version__ = "0.1.0"

__all__ = [
    "SAE",
    "DamagedError",
    "Features",
    "LensaeError",
    "Store",
    "TrainRecipe",
    "UserError",
    "__version__",
    "build_index",
    "collect",
    "evaluate",
    "load_sae",
    "steer",
    "train",
]

_MODULES = {
    "lensae._api.calls": ("build_index", "collect", "evaluate", "load_sae", "steer", "train"),
    "lensae._api.features": ("Features",),
    "lensae._api.store": ("Store",),
    "lensae.core.errors": ("DamagedError", "LensaeError", "UserError"),
    "lensae.core.recipe": ("TrainRecipe",),
    "lensae.sae.base": ("SAE",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lensae' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
