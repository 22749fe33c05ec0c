"""sweep: many SAEs on one pass over the stream, and which of them is worth going on with."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lensae.durable import read_json, write_json
from lensae.errors import LensaeError
from lensae.paths import SaeEntry, list_saes, safe_name
from lensae.recipe import TrainRecipe
from lensae.stages.ranks import trained_together
from lensae.stages.train import Watcher, train_all
from lensae.stages.training_begin import default_name
from lensae.stages.training_data import Data, open_data
from lensae.stages.training_facts import facts_of, write_csv
from lensae.store.writer import now

if TYPE_CHECKING:
    from lensae.sae.world import World

ALIKE = 1.05  # L0s within this factor of one another are compared by explained variance alone
BEND = 0.02  # of the front's rise: what lies no farther above the line between its ends is no bend
CE_TOKENS = 2000
L1_FAMILIES = ("gated", "relu", "tied-l1")
RULES = {
    "alike": "the highest explained variance, as all have much the same L0",
    "straight": "the highest explained variance, as the front has no bend",
    "bend": "the bend of the front: farthest above the line from its first to its last, over log L0",
}


@dataclass(frozen=True)
class Point:
    """One SAE of a sweep, on the held-out rows; `front` when no other has less L0 and more explained variance, that of
    typical rows (lensae.sae.evaluate).

    `ce_recovered` is that of lensae.stages.losses, None where the model could not be run.
    """

    name: str
    arch: str
    d_sae: int
    recipe: dict
    l0: float
    explained_variance_typical: float
    explained_variance: float
    mse: float
    dead_share: float
    seconds: float
    ce_recovered: float | None = None
    front: bool = False

    @property
    def sparsity(self) -> dict[str, float]:
        """The weight of the L1 penalty, where that is what decides about sparsity."""
        given = self.recipe["arch"] in L1_FAMILIES and not self.recipe["target_l0"]
        return {"l1": self.recipe["l1"]} if given else {}


@dataclass(frozen=True)
class SweepReport:
    """What a sweep came to; `failed` says why an SAE could not be trained, `no_losses` why the model was not run."""

    set_name: str
    folder: Path
    points: tuple[Point, ...]
    winner: Point | None
    rule: str
    reused: int
    failed: dict[str, str]
    no_losses: str = ""


def sweep(
    recipes: list[TrainRecipe],
    set_name: str | None = None,
    name: str | None = None,
    watcher: Watcher | None = None,
    command: str | None = None,
    shard_features: bool = False,
) -> SweepReport | None:
    """Train every recipe on one pass over the stream and compare what they came to.

    The recipes share what decides the rows: seed, batch, epochs. An SAE that the same recipe has made from the same
    rows is taken as it is, and an unfinished one gone on with. Writes sweep.json and metrics.csv to
    `<set>/sweeps/<name>`; `name` is also put before the names of the SAEs. Under torchrun the processes share the
    work as in `train`, and the report is the first one's.
    """
    data = open_data(recipes[0], set_name)
    with trained_together(shard_features) as world:
        return _swept(data, recipes, name, watcher, command, world)


def _swept(data: Data, recipes: list[TrainRecipe], name, watcher, command, world: World) -> SweepReport | None:
    distinct = world.together(lambda: _distinct(data, recipes))
    there = world.together(lambda: {own: _trained(data, recipe) for own, recipe in distinct.items()})
    missing = [(recipe, f"{name}-{own}" if name else None) for own, recipe in distinct.items() if not there[own]]
    reports = train_all(data, missing, watcher, command, world) if missing else []
    if not world.first:
        return None
    made = dict(zip([own for own in distinct if not there[own]], reports, strict=True))
    saes = [there[own] or made[own].sae for own in distinct if not isinstance(made.get(own), LensaeError)]
    failed = {own: str(error) for own, error in made.items() if isinstance(error, LensaeError)}
    recovered, no_losses = _recovered(data, saes)
    points = marked([_point(sae, recovered.get(sae.name)) for sae in saes])
    best, rule = winner(points)
    digest = hashlib.sha256(json.dumps([asdict(r) for r in distinct.values()]).encode()).hexdigest()[:8]
    folder = data.entry.path / "sweeps" / safe_name(name or digest)
    reused = sum(sae is not None for sae in there.values())
    report = SweepReport(data.entry.name, folder, tuple(points), best, rule, reused, failed, no_losses)
    _write(report, saes)
    return report


def _distinct(data: Data, recipes: list[TrainRecipe]) -> dict[str, TrainRecipe]:
    """By default name: recipes that differ only in what their family does not use are one SAE."""
    from lensae.sae.plan import complete, make_plan

    found: dict[str, TrainRecipe] = {}
    rows, width = data.split.training.rows, data.reader.width
    for recipe in recipes:
        plan = make_plan(recipe, rows, width)
        found.setdefault(default_name(complete(recipe, rows, width), plan.d_sae), recipe)
    return found


def _trained(data: Data, recipe: TrainRecipe) -> SaeEntry | None:
    """An SAE that the recipe has made from these rows."""
    facts = json.loads(json.dumps(facts_of(data, recipe)))
    for sae in list_saes(data.entry):
        if sae.completed_at and all(sae.training.get(key) == facts.get(key) for key in ("recipe", "set", "target")):
            return sae
    return None


def _recovered(data: Data, saes: list[SaeEntry]) -> tuple[dict[str, float], str]:
    """The share of the model's loss that is kept with each SAE in place of the stream, on the same held-out documents;
    or why it is not known."""
    from lensae.sae.checkpoint import load
    from lensae.stages import losses
    from lensae.stages.models import load_model_of
    from lensae.stages.progress import Silent

    if data.target:
        return {}, "a transcoder gives back another stream than it reads"
    heldout = data.split.heldout
    chosen = heldout.spread(math.ceil(heldout.documents * CE_TOKENS / heldout.rows))
    try:
        model = load_model_of(data.entry, [data.entry.manifest["hook"]])
    except LensaeError as error:
        return {}, str(error)
    placed = {sae.name: load(sae.path).to(model.device) for sae in saes}
    runs = {name: (lambda x, sae=sae: sae.decode(sae.encode(x))) for name, sae in placed.items()}
    found = losses.measure(model, data.reader, chosen, runs, Silent())
    return {name: float(losses.ce_recovered(found.of(name).sum(0))) for name in runs}, ""


def _point(sae: SaeEntry, ce_recovered: float | None) -> Point:
    training = sae.training if "heldout" in sae.training else read_json(sae.path / "training.json")
    held, recipe = training["heldout"], training["recipe"]
    figures = [held[name] for name in ("l0", "explained_variance_typical", "explained_variance", "mse", "dead_share")]
    return Point(
        sae.name, recipe["arch"], training["plan"]["d_sae"], recipe, *figures, training["seconds"], ce_recovered
    )


def marked(points: list[Point]) -> list[Point]:
    """The points by rising L0, with those marked that no other beats in both (the Pareto front)."""
    found, best = [], -math.inf
    for point in sorted(points, key=lambda p: (p.l0, -p.explained_variance_typical)):
        front = point.explained_variance_typical > best
        best = max(best, point.explained_variance_typical)
        found.append(Point(**{**vars(point), "front": front}))
    return found


def winner(points: list[Point]) -> tuple[Point | None, str]:
    """The point to go on with, and by which rule it was chosen."""
    front = [point for point in points if point.front]
    if not front:
        return None, ""
    highest = front[-1]
    if max(p.l0 for p in points) <= ALIKE * min(p.l0 for p in points):
        return highest, RULES["alike"]
    x = [math.log(max(point.l0, 1e-9)) for point in front]
    slope = (highest.explained_variance_typical - front[0].explained_variance_typical) / ((x[-1] - x[0]) or 1.0)
    lines = [front[0].explained_variance_typical + slope * (at - x[0]) for at in x]
    above = [point.explained_variance_typical - line for point, line in zip(front, lines, strict=True)]
    if max(above) <= BEND * (highest.explained_variance_typical - front[0].explained_variance_typical):
        return highest, RULES["straight"]
    return front[above.index(max(above))], RULES["bend"]


def _write(report: SweepReport, saes: list[SaeEntry]) -> None:
    rows = [
        {"sae": sae.name, **row}
        for sae in saes
        for row in csv.DictReader((sae.path / "metrics.csv").read_text(encoding="utf-8").splitlines())
    ]
    write_csv(report.folder / "metrics.csv", rows)
    write_json(report.folder / "sweep.json", summary(report))


def summary(report: SweepReport) -> dict:
    """The report as plain values."""
    return {
        "completed_at": now(),
        "set": report.set_name,
        "folder": str(report.folder),
        "saes": [asdict(point) for point in report.points],
        "winner": report.winner.name if report.winner else None,
        "rule": report.rule,
        "failed": report.failed,
        "no_losses": report.no_losses,
    }
