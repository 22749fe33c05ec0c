"""What is written down of a training: cfg.json's metadata, training.json and metrics.csv."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path

from lensae import __version__
from lensae.core.durable import write_file
from lensae.core.paths import SetEntry
from lensae.core.recipe import TrainRecipe
from lensae.stages.train.data import Data
from lensae.store.writer import now


def write_csv(path: Path, rows: list[dict]) -> None:
    """A table whose columns are all that occur, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def write_metrics(path: Path, history: list) -> None:
    """metrics.csv: a line per measurement, the parts of the loss in columns of their own."""
    rows = [asdict(line) for line in history]
    for row in rows:
        row.update({f"loss_{name}": value for name, value in row.pop("losses").items()})
    write_csv(path, rows)


def metadata(data: Data, recipe: TrainRecipe) -> dict:
    """What goes into cfg.json's metadata, under SAELens' own names where it has one."""
    manifest = data.entry.manifest
    corpora = sorted({one.spec["corpus"] for one in manifest.passes})
    found = {
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
    return found | ({"hook_name_out": data.target.entry.manifest.hook} if data.target else {})


def facts_of(data: Data, recipe: TrainRecipe) -> dict:
    """What decides a training."""
    target = {"target": _set(data.target.entry)} if data.target else {}
    return {"recipe": asdict(recipe), "set": _set(data.entry), **target}


def _set(entry: SetEntry) -> dict:
    return {
        "name": entry.name,
        "hook": entry.manifest.hook,
        "rows": entry.rows,
        "model": asdict(entry.manifest.model),
        "shards_sha256": [shard.sha256 for shard in entry.manifest.shards],
    }


def outcome(data: Data, plan, fit) -> dict:
    """What a training came to."""
    from lensae.sae.kernels.backend import TORCH, current

    used = current()
    timed = {"triton": sorted(used.triton), "seconds": used.seconds, "refused": used.refused}
    return {
        "completed_at": now(),
        "stopped": fit.stopped,
        "plan": asdict(plan),
        "scale": fit.scales[0],
        "target_scale": fit.scales[-1],
        "heldout": {k: v for k, v in vars(fit.heldout).items() if k != "density"},
        **({} if fit.agreement is None else {"encoder_agreement": fit.agreement}),
        **({} if used == TORCH else {"kernels": timed}),
        "heldout_limit": data.split.limit,
        "epochs_run": max(line.epoch for line in fit.history),
        "seconds": round(fit.seconds, 3),
    }
