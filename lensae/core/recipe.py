"""TOML recipes and the validated settings they fill. A recipe holds the knobs that are too rare for a flag."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from lensae.core.errors import UserError, nearest
from lensae.core.program import command

MASSIVE = 4.0  # rows of a norm above so many times the mean norm are massive activations


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: the `top_k` likeliest at `temperature` (0: the likeliest), from a seeded stream."""

    max_new_tokens: int = 64
    temperature: float = 0.9
    top_k: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise UserError(f"max-new-tokens cannot be {self.max_new_tokens}", "0 or more")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature cannot be {self.temperature}", "0 (greedy) or more")
        if self.top_k < 1:
            raise UserError(f"top-k cannot be {self.top_k}", "1 or more")


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides a training; None means "chosen from the set's size" (the choice is recorded).

    `arch` is the architecture, `width` the number of features as a multiple of d_model, `k` the active features per
    token of an architecture that fixes them. `l1` is the weight of a sparsity penalty; with `target_l0`, the number of
    features that are to be active, it is only where that weight starts. An architecture that has a target in any case
    takes `k` when there is no `target_l0`: `l0_weight` weighs the distance from it, `l0_penalty` says how its gradient
    is estimated ("step" or "tanh"), `bandwidth` is that of the estimates, in rows of norm sqrt(d_model).
    `aux` is the weight of the loss that revives silent features, `resample` how often dead features begin again from
    what the others leave unexplained.
    `epochs` are passes over the training rows, `tokens` is their number in all. `norm_limit`: the error of a row weighs
    no more in training than that of a row so many times as long as the mean (0: without limit). `average` is the weight
    of the past in an exponential moving average of the weights, which is what is measured and kept (0: none).
    `encoder_dtype` is the precision of the product that selects features in training; their values are always float32.
    `target` names a set of the same tokens whose rows are to be predicted (a transcoder). `seed` decides what is held
    out, the order of the rows and the start; `init_seed` the start alone, when it is to differ. Rows are shuffled over
    windows of `shuffle_rows`. A checkpoint is written every `checkpoint_minutes`.
    """

    arch: str = "topk"
    width: float | None = None
    k: int | None = None
    l1: float = 0.1
    target_l0: float | None = None
    l0_weight: float = 3.0
    l0_penalty: str = "step"
    bandwidth: float = 1.0
    lr: float | None = None
    batch: int | None = None
    epochs: int | None = None
    tokens: int | None = None
    warmup: float = 0.05
    decay: float = 0.2
    patience: int = 3
    heldout: float = 0.1
    aux: float | None = None
    norm_limit: float = MASSIVE
    resample: int = 0
    average: float = 0.0
    encoder_dtype: str = "float32"
    seed: int = 0
    init_seed: int | None = None
    target: str | None = None
    shuffle_rows: int | None = None
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} cannot be {value}", "it must be more than 0")
        for name in ("warmup", "decay", "heldout", "aux", "average"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name} cannot be {value}", "a share from 0 up to 1")
        for name in ("resample", "norm_limit"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} cannot be {getattr(self, name)}", "0 or more")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name} cannot be '{getattr(self, name)}'", f"one of {', '.join(known)}")
        if self.epochs and self.tokens:
            raise UserError("epochs and tokens are both given", "give one of them")


# Fields that must be more than 0, those with a choice of words, and those of each type in TOML.
POSITIVE = (
    *("width", "k", "l1", "l0_weight", "bandwidth", "batch", "patience", "lr", "epochs", "tokens", "target_l0"),
    *("shuffle_rows", "checkpoint_minutes"),
)
CHOICES = {"encoder_dtype": ("float32", "bfloat16"), "l0_penalty": ("step", "tanh")}
TEXT = ("arch", "target", *CHOICES)
INTEGER = ("k", "resample", "batch", "epochs", "tokens", "patience", "seed", "init_seed", "shuffle_rows")
SWEPT = ("arch", "width", "k", "l1", "target_l0", "seed")  # of these a recipe may give a list


def load_train(path: Path | None, **given: object) -> TrainRecipe:
    """The `[train]` table of a recipe file, with what was `given` on the command line (not None) over it.

    Raises UserError for a missing file, one that is not TOML, an unknown key or a value of the wrong kind, and for
    several values where one is wanted.
    """
    recipes = load_sweep(path, **given)
    if len(recipes) > 1:
        raise UserError(
            f"{path} describes {len(recipes)} SAEs", f"train them with: {command(f'train --recipe {path}')}"
        )
    return recipes[0]


def load_sweep(path: Path | None, **given: object) -> list[TrainRecipe]:
    """Every combination of the values that the `[train]` table and the command line give; raises as load_train does.

    Several seeds are seeds of the start: all SAEs see the rows that the first seed orders, and what it holds out.
    """
    values = _checked(path, table(path, "train")) if path else {}
    values |= {key: value for key, value in given.items() if value is not None and value != []}
    lists = {key: list(dict.fromkeys(value)) for key, value in values.items() if isinstance(value, list)}
    single = {key: value for key, value in values.items() if key not in lists}
    recipes = []
    for combination in itertools.product(*lists.values()):
        one = dict(zip(lists, combination, strict=True))
        seeds = lists.get("seed", [])
        if len(seeds) > 1 and one["seed"] != seeds[0]:
            one |= {"init_seed": one["seed"], "seed": seeds[0]}
        recipes.append(TrainRecipe(**{**single, **one}))
    return recipes


def _checked(path: Path, given: dict) -> dict:
    fields = {field.name: field for field in dataclasses.fields(TrainRecipe)}
    for key, value in given.items():
        if key not in fields:
            raise UserError(f"{path}: unknown key '{key}' in [train]", nearest(key, fields) or ", ".join(fields))
        wanted = str if key in TEXT else int if key in INTEGER else (int, float)
        several = key in SWEPT and isinstance(value, list) and value
        for one in value if several else [value]:
            if not isinstance(one, wanted) or isinstance(one, bool):
                raise UserError(f"{path}: '{key}' cannot be {value!r}")
    return given


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
