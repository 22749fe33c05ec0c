"""sweep: many SAEs on one pass over the stream, and which of them is the best to work with."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lensae.core import registry
from lensae.core.durable import write_json
from lensae.core.errors import LensaeError
from lensae.core.paths import SaeEntry, find_sae, safe_name
from lensae.core.recipe import TrainRecipe
from lensae.core.training_record import SWEEP
from lensae.stages.index import IndexReport
from lensae.stages.shared.processes import current, training_group
from lensae.stages.train.checks import check_recipe
from lensae.stages.train.data import TrainingData, open_data
from lensae.stages.train.pareto import Point, choose_winner, mark_front
from lensae.stages.train.record import find_trained, write_csv
from lensae.stages.train.run import TrainReport, build_index, train_all
from lensae.stages.train.setup import default_name
from lensae.stages.train.watcher import Watcher
from lensae.store.writer import now

if TYPE_CHECKING:
    from lensae.sae.distributed.process_group import ProcessGroup

CE_TOKENS = 2000


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """The result of a sweep; `reused` counts SAEs that were trained before, `failed` says why an SAE could not be
    trained, `no_losses` why the model was not run; `index` is that of the winner, None where none was built."""

    completed_at: str
    set_name: str
    folder: Path
    points: tuple[Point, ...]
    winner: Point | None
    rule: str
    reused: int
    failed: dict[str, str]
    no_losses: str = ""
    index: IndexReport | None = None

    def summary(self) -> dict:
        """The report as plain values."""
        return {
            "completed_at": self.completed_at,
            "set": self.set_name,
            "folder": str(self.folder),
            "saes": [asdict(point) for point in self.points],
            "winner": self.winner.name if self.winner else None,
            "rule": self.rule,
            "failed": self.failed,
            "no_losses": self.no_losses,
        }


def sweep(
    recipes: list[TrainRecipe],
    set_name: str | None = None,
    name: str | None = None,
    watcher: Watcher | None = None,
    command: str | None = None,
    shard_features: bool = False,
    index: bool = True,
) -> SweepReport | None:
    """Train every recipe on one pass over the stream, compare the SAEs and index the winner, the current SAE then.

    The recipes share what decides the rows: seed, batch, epochs. An SAE that the same recipe has made from the same
    rows is reused, and an unfinished one resumed. Writes sweep.json and metrics.csv to `<set>/sweeps/<name>`; `name` is
    also put before the names of the SAEs. Without `index` no feature index is built. Under torchrun the processes
    share the work as in `train`, and the first one has the report.
    """
    data = open_data(recipes[0], set_name)
    for recipe in recipes:
        check_recipe(data, recipe, current().world_size if shard_features else 1)
    with training_group(shard_features) as group:
        report = _train_and_compare(data, recipes, name, watcher, command, group)
    if report is None or report.winner is None or not index:
        return report
    winner = find_sae(data.entry, report.winner.name)
    return replace(report, index=build_index(data, winner, watcher))


def _train_and_compare(
    data: TrainingData,
    recipes: list[TrainRecipe],
    name: str | None,
    watcher: Watcher | None,
    command: str | None,
    group: ProcessGroup,
) -> SweepReport | None:
    distinct = group.collectively(lambda: _distinct(data, recipes))
    existing = group.collectively(lambda: {key: find_trained(data, recipe) for key, recipe in distinct.items()})
    missing = [key for key in distinct if not existing[key]]
    wanted = [(distinct[key], f"{name}-{key}" if name else None) for key in missing]
    reports = train_all(data, wanted, watcher, command, group) if missing else []
    if not group.is_first:
        return None
    trained = dict(zip(missing, reports, strict=True))
    saes = [sae for key in distinct if (sae := existing[key] or _sae_of(trained[key]))]
    failed = {key: str(report) for key, report in trained.items() if isinstance(report, LensaeError)}
    recovered, no_losses = _recovered(data, saes)
    points = mark_front([_point(sae, recovered.get(sae.name)) for sae in saes])
    winner, rule = choose_winner(points)
    report = SweepReport(
        completed_at=now(),
        set_name=data.entry.name,
        folder=data.entry.path / "sweeps" / safe_name(name or _digest(list(distinct.values()))),
        points=tuple(points),
        winner=winner,
        rule=rule,
        reused=len(distinct) - len(missing),
        failed=failed,
        no_losses=no_losses,
    )
    _write(report, saes)
    return report


def _sae_of(report: TrainReport | LensaeError | None) -> SaeEntry | None:
    return report.sae if isinstance(report, TrainReport) else None


def _digest(recipes: list[TrainRecipe]) -> str:
    """A short name for what these recipes train."""
    return hashlib.sha256(json.dumps([asdict(recipe) for recipe in recipes]).encode()).hexdigest()[:8]


def _distinct(data: TrainingData, recipes: list[TrainRecipe]) -> dict[str, TrainRecipe]:
    """By default name: recipes that differ only in what their family does not use are one SAE."""
    from lensae.sae.train.schedule import complete, make_plan

    distinct: dict[str, TrainRecipe] = {}
    rows, width = data.split.training.rows, data.reader.width
    for recipe in recipes:
        plan = make_plan(recipe, rows, width)
        distinct.setdefault(default_name(complete(recipe, rows, width), plan.d_sae), recipe)
    return distinct


def _recovered(data: TrainingData, saes: list[SaeEntry]) -> tuple[dict[str, float], str]:
    """CE loss recovered with each SAE in the stream, on the same held-out documents; or why it is not known."""
    from lensae.sae.formats.saelens import load
    from lensae.stages.evaluate import losses
    from lensae.stages.evaluate.reconstruction import of_sae
    from lensae.stages.shared.models import load_model_of
    from lensae.stages.shared.progress import Silent

    if data.target:
        return {}, "a transcoder predicts another stream than it reads"
    heldout = data.split.heldout
    chosen = heldout.spread(math.ceil(heldout.documents * CE_TOKENS / heldout.rows))
    try:
        model = load_model_of(data.entry, [data.entry.manifest.hook])
    except LensaeError as error:
        return {}, str(error)
    reconstructions = {sae.name: of_sae(sae.name, "", load(sae.path), model.device).predict for sae in saes}
    measured = losses.measure(model, data.reader, chosen, reconstructions, Silent())
    return {name: float(losses.ce_recovered(measured.of(name).sum(0))) for name in reconstructions}, ""


def _point(sae: SaeEntry, ce_recovered: float | None) -> Point:
    record = sae.record
    recipe, heldout = record.recipe, record.heldout
    weight = registry.load("sae.architectures", recipe.arch).Trainer.penalised_by
    return Point(
        name=sae.name,
        arch=recipe.arch,
        d_sae=record.plan["d_sae"],
        recipe=recipe,
        l0=heldout["l0"],
        explained_variance_typical=heldout["explained_variance_typical"],
        explained_variance=heldout["explained_variance"],
        mse=heldout["mse"],
        dead_share=heldout["dead_share"],
        seconds=record.seconds or 0.0,
        penalty=getattr(recipe, weight) if weight and not recipe.target_l0 else None,
        ce_recovered=ce_recovered,
    )


def _write(report: SweepReport, saes: list[SaeEntry]) -> None:
    rows = [
        {"sae": sae.name, **row}
        for sae in saes
        for row in csv.DictReader((sae.path / "metrics.csv").read_text(encoding="utf-8").splitlines())
    ]
    write_csv(report.folder / "metrics.csv", rows)
    write_json(report.folder / SWEEP, report.summary())
