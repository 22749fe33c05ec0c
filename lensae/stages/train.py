"""train: sparse autoencoders on an activation set, streamed from its shards."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lensae.errors import Elsewhere, LensaeError, UserError
from lensae.paths import SaeEntry, SetEntry
from lensae.recipe import TrainRecipe
from lensae.stages.event_files import EventFile
from lensae.stages.interrupts import requested
from lensae.stages.ranks import trained_together
from lensae.stages.training_begin import Training, begun
from lensae.stages.training_data import LOOK_ROWS, Data, open_data
from lensae.stages.training_facts import facts_of, metadata, outcome, write_metrics

if TYPE_CHECKING:
    from lensae.sae.world import World

SHARED = ("seed", "heldout", "batch", "target", "shuffle_rows")  # what decides the rows and their order


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

    def begins(self, entry: SetEntry, trainings: list[Training]) -> None:
        """The plans are made; a training that goes on has a history already."""

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """A batch is done; the losses of every SAE that learnt from it."""

    def epoch(self, training: Training, line) -> None:
        """An SAE was measured on the held-out rows."""


def train(
    recipe: TrainRecipe,
    set_name: str | None = None,
    name: str | None = None,
    watcher: Watcher | None = None,
    command: str | None = None,
    shard_features: bool = False,
) -> TrainReport | None:
    """Train the recipe's architecture on the set and save the best weights under `saes/<name>`.

    An interrupted training goes on from its checkpoint when the same recipe is trained on the same rows again, to the
    same bytes; `command` is what is typed for that. Under torchrun the processes train one SAE together: each learns
    from its part of every batch, or with `shard_features` holds its part of the features; the report is the first
    one's. Raises UserError when the recipe cannot work on the set.
    """
    data = open_data(recipe, set_name)
    with trained_together(shard_features) as world:
        reports = train_all(data, [(recipe, name)], watcher, command, world)
    if not world.first:
        return None
    [report] = reports
    if isinstance(report, LensaeError):
        raise report
    return report


def train_all(
    data: Data,
    wanted: list[tuple[TrainRecipe, str | None]],
    watcher: Watcher | None = None,
    command: str | None = None,
    world: World | None = None,
) -> list[TrainReport | LensaeError | None]:
    """Train every recipe (under its name) on one pass over the stream: a report for each, or what made it fail.

    Of the processes of a `world` the first has the reports; it alone writes and tells.
    """
    from lensae.model.precision import fast_matmul
    from lensae.sae.fit import fit_all
    from lensae.sae.kernels import using
    from lensae.sae.measure import NotFinite
    from lensae.sae.world import ALONE

    world = world or ALONE
    watcher = (watcher if world.first else None) or Watcher()
    world.together(lambda: _check_shared([recipe for recipe, _name in wanted]))
    with ExitStack() as stack:
        trainings = [stack.enter_context(begun(data, recipe, name, command, world)) for recipe, name in wanted]
        stop = stack.enter_context(requested())
        watcher.begins(data.entry, trainings)
        first = trainings[0]
        world.together(lambda: _check_batch(trainings))
        stack.enter_context(fast_matmul())
        stack.enter_context(using(_kernels(trainings, data.reader.width)))
        try:
            fit_all(
                [training.lane for training in trainings],
                data.stream(first.recipe, first.plan.batch, world),
                data.heldout(first.plan.batch, LOOK_ROWS),
                stack.enter_context(_Hooks(trainings if world.first else [], watcher, stop)),
                first.recipe.checkpoint_minutes,
            )
            return [_finished(data, training, stop, world) for training in trainings]
        except NotFinite as error:
            raise data.explain_not_finite(error) from None


def _kernels(trainings: list[Training], width: int):
    """Which kernels they use: what is faster for the widest of them."""
    from lensae.sae.kernels import choose

    widest = max(trainings, key=lambda training: training.plan.d_sae)
    plan = widest.plan
    return choose(plan.batch, width, plan.d_sae, plan.k, widest.lane.device)


def _check_shared(recipes: list[TrainRecipe]) -> None:
    for name in SHARED:
        values = {getattr(recipe, name) for recipe in recipes}
        if len(values) > 1:
            raise UserError(f"SAEs on one pass cannot differ in {name}: {values}", "train them one by one")


def _check_batch(trainings: list[Training]) -> None:
    if len({training.plan.batch for training in trainings}) > 1:
        raise UserError("unfinished trainings of these settings have another batch", "finish them one by one")


class _Hooks:
    """Hands on what the training loop tells (lensae.sae.fit.Hooks), and keeps metrics.csv."""

    def __init__(self, trainings: list[Training], watcher: Watcher, stop):
        self.of = {id(training.lane): training for training in trainings}
        self.step, self.watcher, self.stop = watcher.step, watcher, stop

    def __enter__(self) -> _Hooks:
        paths = {key: training.folder.path / "tensorboard" for key, training in self.of.items()}
        self.events = {key: EventFile(path, self.of[key].lane.place.history) for key, path in paths.items()}
        return self

    def __exit__(self, *_exc) -> None:
        for events in self.events.values():
            events.close()

    def measured(self, lane, line) -> None:
        if id(lane) not in self.of:
            return
        training = self.of[id(lane)]
        write_metrics(training.folder.path / "metrics.csv", lane.place.history)
        self.events[id(lane)].add(line)
        self.watcher.epoch(training, line)


def _finished(data: Data, training: Training, stop, world: World) -> TrainReport | LensaeError | None:
    """Calibrated, measured on all held-out rows and saved, by the first process."""
    from lensae.sae import checkpoint
    from lensae.sae.fit import result

    if world.any(stop())[0]:
        raise KeyboardInterrupt
    folder = training.folder
    if not folder and not world.features_divided:
        return None
    try:
        fit = result(training.lane, data.heldout(training.plan.batch))
    except Elsewhere:
        raise
    except LensaeError as error:
        if folder and not training.lane.failed:  # nothing to go on from: its last checkpoint has no live feature
            folder.discard()
        return error
    sae = fit.sae(metadata(data, training.recipe))
    if folder:
        write_metrics(folder.path / "metrics.csv", fit.history)
    checkpoint.save(folder.path if folder else None, sae, world)
    if not folder:
        return None
    facts = {**facts_of(data, training.recipe), **outcome(data, training.plan, fit)}
    folder.finish(facts)
    return TrainReport(data.entry.name, SaeEntry(folder.path, facts), training.recipe, training.plan, fit)
