"""train: a sparse autoencoder on an activation set, streamed from its shards."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path

from lensae import __version__, registry
from lensae.durable import Folder, write_json
from lensae.errors import UserError
from lensae.paths import SaeEntry, SetEntry, find_set, safe_name
from lensae.recipe import TrainRecipe
from lensae.store.reader import SetReader, Split
from lensae.store.stream import RowStream
from lensae.store.writer import now


@dataclass(frozen=True)
class TrainReport:
    """What a training left behind."""

    set_name: str
    sae: SaeEntry
    recipe: TrainRecipe
    plan: object
    fit: object


class Watcher:
    """What a caller may want to hear of a training; every method may be left as it is."""

    def begins(self, entry: SetEntry, name: str, recipe: TrainRecipe, plan) -> None:
        """The plan is made."""

    def step(self, rows: int, losses: dict[str, float]) -> None:
        """A step is done."""

    def epoch(self, epoch) -> None:
        """An epoch is done and measured."""


def train(
    recipe: TrainRecipe, set_name: str | None = None, name: str | None = None, watcher: Watcher | None = None
) -> TrainReport:
    """Train the recipe's architecture on the set and save the best weights under `saes/<name>`.

    The folder gets its name only when everything is in it. Raises UserError when the recipe cannot work on the set.
    """
    entry = find_set(set_name)
    reader = SetReader(entry)
    architecture = registry.load("sae.architectures", recipe.arch)
    from lensae.model.precision import fast_matmul
    from lensae.sae import checkpoint
    from lensae.sae.fit import fit, make_plan

    watcher = watcher or Watcher()
    split = reader.split(recipe.heldout, recipe.seed)
    _check_split(entry, split)
    plan = make_plan(recipe, split.training.rows, reader.width)
    if name and (entry.path / "saes" / safe_name(name)).exists():
        raise UserError(f"there is already an SAE '{name}' in {entry.name}", "give another --name, or remove it")
    name = _free_name(entry, safe_name(name or default_name(recipe, plan.d_sae)))
    watcher.begins(entry, name, recipe, plan)
    place = Folder(entry.path / "saes" / name, taken=lambda target: target.with_name(_free_name(entry, target.name)))
    with place as folder:
        log = _MetricsFile(folder / "metrics.csv")

        def on_epoch(epoch) -> None:
            log.add(epoch)
            watcher.epoch(epoch)

        with fast_matmul():
            result = fit(
                lambda window: architecture.Trainer(reader.width, plan.d_sae, recipe, window),
                RowStream(reader, split.training, plan.batch, recipe.seed).epoch,
                lambda: reader.batches(split.heldout, plan.batch),
                recipe,
                plan,
                watcher.step,
                on_epoch,
            )
        checkpoint.save(folder, result.sae(_metadata(entry, recipe)))
        facts = _training(entry, recipe, plan, result) | {"heldout_limit": split.limit}
        write_json(folder / "training.json", facts)
    return TrainReport(entry.name, SaeEntry(place.target, facts), recipe, plan, result)


def default_name(recipe: TrainRecipe, d_sae: int) -> str:
    """For example topk-2304-k32."""
    sparsity = registry.load("sae.architectures", recipe.arch).Trainer.sparsity(recipe)
    return f"{recipe.arch}-{d_sae}-{sparsity}"


def _check_split(entry: SetEntry, split: Split) -> None:
    if not split.training.documents or not split.heldout.documents:
        documents = split.training.documents + split.heldout.documents
        raise UserError(
            f"{entry.name} has too few documents to hold some out ({documents} with rows)",
            "collect from at least two prompts: python main.py collect",
        )


def _free_name(entry: SetEntry, name: str) -> str:
    """`name`, or with a number behind it when it is taken: a training never replaces another."""
    free, number = name, 2
    while (entry.path / "saes" / free).exists():
        free, number = f"{name}-{number}", number + 1
    return free


class _MetricsFile:
    """metrics.csv, a line per epoch, on disk as soon as the epoch is done."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, epoch) -> None:
        """Append one epoch; the first call writes the column names."""
        row = asdict(epoch)
        row.update({f"loss_{name}": value for name, value in row.pop("losses").items()})
        new = not self.path.exists()
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


def _metadata(entry: SetEntry, recipe: TrainRecipe) -> dict:
    """What goes into cfg.json's metadata, under SAELens' own names where it has one."""
    model = entry.manifest["model"]
    corpora = sorted({p["spec"]["corpus"] for p in entry.manifest["passes"]})
    return {
        "model_name": model["name"],
        "hook_name": entry.manifest["hook"],
        "hook_head_index": None,
        "dataset_path": ", ".join(corpora),
        "prepend_bos": True,
        "exclude_special_tokens": True,
        "training_architecture": recipe.arch,
        "model_weights_sha256": model["weights_sha256"],
        "lensae_version": __version__,
    }


def _training(entry: SetEntry, recipe: TrainRecipe, plan, result) -> dict:
    figures = {k: v for k, v in vars(result.heldout).items() if k != "density"}
    return {
        "completed_at": now(),
        "stopped": result.stopped,
        "recipe": asdict(recipe),
        "plan": asdict(plan),
        "scale": result.scales[0],
        "heldout": figures,
        "epochs_run": len(result.history),
        "seconds": round(result.seconds, 3),
        "set": {
            "name": entry.name,
            "hook": entry.manifest["hook"],
            "rows": entry.rows,
            "model": entry.manifest["model"],
            "shards_sha256": [shard["sha256"] for shard in entry.manifest["shards"]],
        },
    }
