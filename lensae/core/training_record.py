"""What is recorded of a training (`saes/<name>/training.json`) and of a comparison (`sweeps/<name>/sweep.json`).

They may have been edited by hand, so every entry is checked when it is read, once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lensae.core.durable import read_json
from lensae.core.errors import DamagedError, UserError
from lensae.core.manifest import ModelRecord
from lensae.core.recipe import TrainRecipe
from lensae.core.validation import HINT, record_from_json

TRAINING, SWEEP = "training.json", "sweep.json"


@dataclass(frozen=True, kw_only=True)
class SetRecord:
    """An activation set as it was when a training on it began."""

    name: str
    hook: str
    rows: int
    model: ModelRecord
    shards_sha256: list[str]


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Everything that a training says of itself.

    `recipe`, `set` and `target` (the set that a transcoder predicts) decide what is trained; `command` trains it again
    or resumes it. `completed_at` is "", and what follows is not known, until the SAE is whole on disk.

    `plan` holds the numbers that the recipe left open, `scale` and `target_scale` the factors of the rows in training,
    `heldout` the figures on held-out rows, `heldout_limit` which documents those are of
    (lensae.store.reader.Split), `encoder_agreement` the share of the features that an encoder in fewer bits selects as
    float32 does, `kernels` which kernels were timed and chosen, where there was a choice, `weights_sha256` the digest
    of sae_weights.safetensors.
    """

    recipe: TrainRecipe
    set: SetRecord
    target: SetRecord | None = None
    command: str | None = None
    completed_at: str = ""
    stopped: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    scale: float | None = None
    target_scale: float | None = None
    heldout: dict[str, Any] = field(default_factory=dict)
    heldout_limit: int | None = None
    encoder_agreement: float | None = None
    kernels: dict[str, Any] | None = None
    epochs_run: int | None = None
    seconds: float | None = None
    weights_sha256: str | None = None

    def is_same_training(self, other: TrainingRecord) -> bool:
        """Whether both train the same recipe on the same rows."""
        return (self.recipe, self.set, self.target) == (other.recipe, other.set, other.target)

    def to_json(self) -> dict[str, Any]:
        """The record as plain values, without what is not known."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name == "completed_at" or value not in (None, "", {})}


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """Which SAE a sweep chose, and when; None where every training failed."""

    completed_at: str
    winner: str | None


def read_training(folder: Path) -> TrainingRecord | None:
    """The record of the SAE in `folder`, None for an SAE that was not trained here; raises DamagedError."""
    path = folder / TRAINING
    return training_from_json(read_json(path), f"{path}") if path.is_file() else None


def read_sweep(path: Path) -> SweepRecord:
    """The record in a sweep.json; raises DamagedError when it cannot be used."""
    return record_from_json(SweepRecord, read_json(path), f"{path}")


def training_from_json(value: object, where: str) -> TrainingRecord:
    """A training record from JSON; raises DamagedError naming `where` and the first entry that cannot be right."""
    record = record_from_json(TrainingRecord, value, where)
    target = None if record.target is None else _set_from_json(record.target, f"{where}: target")
    return dataclasses.replace(
        record,
        recipe=_recipe_from_json(record.recipe, f"{where}: recipe"),
        set=_set_from_json(record.set, f"{where}: set"),
        target=target,
    )


def _set_from_json(value: object, where: str) -> SetRecord:
    record = record_from_json(SetRecord, value, where)
    return dataclasses.replace(record, model=record_from_json(ModelRecord, record.model, f"{where}: model"))


def _recipe_from_json(value: Any, where: str) -> TrainRecipe:
    known = {one.name for one in dataclasses.fields(TrainRecipe)}
    try:
        return TrainRecipe(**{name: setting for name, setting in value.items() if name in known})
    except (UserError, TypeError) as error:
        raise DamagedError(f"{where} cannot be used: {error}", HINT) from None
