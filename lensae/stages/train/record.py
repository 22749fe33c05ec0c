"""What is recorded of a training: cfg.json's metadata, training.json and metrics.csv."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lensae import __version__
from lensae.core.durable import write_file
from lensae.core.paths import SaeEntry, SetEntry, list_saes
from lensae.core.recipe import TrainRecipe
from lensae.core.training_record import SetRecord, TrainingRecord
from lensae.stages.train.data import TrainingData
from lensae.store.writer import now

if TYPE_CHECKING:
    from lensae.sae.train.loop import TrainingResult
    from lensae.sae.train.schedule import Plan


def write_csv(path: Path, rows: list[dict]) -> None:
    """A table with every column that occurs in a row, written whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def write_metrics(path: Path, history: list) -> None:
    """metrics.csv: a line per measurement, with a column for each part of the loss."""
    rows = [asdict(line) for line in history]
    for row in rows:
        row.update({f"loss_{name}": value for name, value in row.pop("losses").items()})
    write_csv(path, rows)


def metadata(data: TrainingData, recipe: TrainRecipe) -> dict:
    """What goes into cfg.json's metadata, under SAELens' own names where it has one."""
    manifest = data.entry.manifest
    corpora = sorted({one.spec["corpus"] for one in manifest.passes})
    values = {
        "model_name": manifest.model.name,
        "hook_name": manifest.hook,
        "hook_head_index": None,
        "dataset_path": ", ".join(corpora),
        "prepend_bos": True,
        "exclude_special_tokens": True,
        "training_architecture": recipe.arch,
        "model_weights_sha256": manifest.model.weights_sha256,
        "lensae_version": __version__,
    }
    return values | ({"hook_name_out": data.target.entry.manifest.hook} if data.target else {})


def new_record(data: TrainingData, recipe: TrainRecipe, command: str | None = None) -> TrainingRecord:
    """The record of a training that begins: what decides it, and the command that resumes it."""
    target = set_record(data.target.entry) if data.target else None
    return TrainingRecord(recipe=recipe, set=set_record(data.entry), target=target, command=command)


def set_record(entry: SetEntry) -> SetRecord:
    """An activation set as a training on it records it."""
    return SetRecord(
        name=entry.name,
        hook=entry.manifest.hook,
        rows=entry.rows,
        model=entry.manifest.model,
        shards_sha256=[shard.sha256 for shard in entry.manifest.shards],
    )


def finished_record(
    record: TrainingRecord, data: TrainingData, plan: Plan, fit: TrainingResult, weights_sha256: str
) -> TrainingRecord:
    """The record of a training that is over, with its results."""
    from lensae.sae.kernels.backend import TORCH, current

    used = current()
    timed = {"triton": sorted(used.triton), "seconds": used.seconds, "refused": used.refused}
    return replace(
        record,
        completed_at=now(),
        stopped=fit.stopped,
        plan=asdict(plan),
        scale=fit.scales[0],
        target_scale=fit.scales[-1],
        heldout={name: value for name, value in vars(fit.heldout).items() if name != "density"},
        encoder_agreement=fit.agreement,
        kernels=None if used == TORCH else timed,
        heldout_limit=data.split.limit,
        epochs_run=max(line.epoch for line in fit.history),
        seconds=round(fit.seconds, 3),
        weights_sha256=weights_sha256,
    )


def find_trained(data: TrainingData, recipe: TrainRecipe) -> SaeEntry | None:
    """A finished SAE that the same recipe has made from the same rows, or None."""
    wanted = new_record(data, recipe)
    for sae in list_saes(data.entry):
        if sae.training and sae.completed_at and sae.training.is_same_training(wanted):
            return sae
    return None
