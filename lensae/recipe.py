"""TOML recipes and the validated settings they fill. A recipe holds the knobs that are too rare for a flag."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path

from lensae.errors import UserError, nearest


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides a training; None means "chosen from the set's size" (the choice is recorded).

    `width` is the number of features, as a multiple of d_model; `k` the active features per token (topk, batchtopk,
    matryoshka); `l1` the sparsity weight (relu, tied-l1, gated), which starts there and moves when `target_l0` says how
    many features are to be active (jumprelu: without it, k); `l0_weight` of the distance from that (jumprelu);
    `bandwidth` of the estimate of a threshold's gradient, in rows of norm sqrt(d_model) (jumprelu); `aux` weight of the
    loss that revives silent features; `epochs` passes over the training rows, or `tokens` in all.
    """

    arch: str = "topk"
    width: float = 4
    k: int = 32
    l1: float = 0.1
    target_l0: float | None = None
    l0_weight: float = 3.0
    bandwidth: float = 1.0
    lr: float | None = None
    batch: int = 2048
    epochs: int | None = None
    tokens: int | None = None
    warmup: float = 0.05
    decay: float = 0.2
    patience: int = 3
    heldout: float = 0.1
    aux: float = 1 / 32
    seed: int = 0

    def __post_init__(self):
        positive = ("width", "k", "l1", "l0_weight", "bandwidth", "batch", "patience")
        for name in positive + tuple(
            n for n in ("lr", "epochs", "tokens", "target_l0") if getattr(self, n) is not None
        ):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise UserError(f"{name} cannot be {value}", "it must be more than 0")
        for name in ("warmup", "decay", "heldout", "aux"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} cannot be {getattr(self, name)}", "a share from 0 up to 1")
        if self.epochs and self.tokens:
            raise UserError("epochs and tokens are both given", "give one of them")


def load_train(path: Path | None, **given) -> TrainRecipe:
    """The `[train]` table of a recipe file, with what was `given` on the command line (not None) over it.

    Raises UserError for a missing file, one that is not TOML, an unknown key or a value of the wrong kind.
    """
    given_by_file = table(path, "train") if path else {}
    fields = {field.name: field for field in dataclasses.fields(TrainRecipe)}
    for key, value in given_by_file.items():
        if key not in fields:
            raise UserError(f"{path}: unknown key '{key}' in [train]", nearest(key, fields) or ", ".join(fields))
        wanted = str if key == "arch" else (int, float)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise UserError(f"{path}: '{key}' cannot be {value!r}")
    return TrainRecipe(**{**given_by_file, **{key: value for key, value in given.items() if value is not None}})


def table(path: Path, name: str) -> dict:
    """One table of a recipe file; raises UserError when the file or the table cannot be used."""
    try:
        with open(path, "rb") as stream:
            recipe = tomllib.load(stream)
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is not TOML: {error}") from None
    if not isinstance(recipe.get(name), dict):
        raise UserError(f"recipe {path} has no [{name}] table")
    return recipe[name]
