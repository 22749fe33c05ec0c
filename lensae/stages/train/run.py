"""train: sparse autoencoders on an activation set, streamed from its shards."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lensae.core.errors import LensaeError, OtherProcessEnded, UserError
from lensae.core.paths import SaeEntry
from lensae.core.recipe import TrainRecipe
from lensae.stages.shared.interrupts import requested
from lensae.stages.shared.processes import training_group
from lensae.stages.train.data import FINAL_ROWS, Data, open_data
from lensae.stages.train.record import facts_of, metadata, outcome, write_metrics
from lensae.stages.train.setup import Training, begun
from lensae.stages.train.tensorboard import EventFile
from lensae.stages.train.watcher import Watcher

if TYPE_CHECKING:
    from lensae.sae.distributed.process_group import ProcessGroup

SHARED = ("seed", "heldout", "batch", "target", "shuffle_rows")  # what decides the rows and their order


@dataclass(frozen=True)
class TrainReport:
    """What a training left behind."""

    set_name: str
    sae: SaeEntry
    recipe: TrainRecipe
    plan: object
    fit: object


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
    with training_group(shard_features) as group:
        reports = train_all(data, [(recipe, name)], watcher, command, group)
    if not group.is_first:
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
    group: ProcessGroup | None = None,
) -> list[TrainReport | LensaeError | None]:
    """Train every recipe (under its name) on one pass over the stream: a report for each, or what made it fail.

    Of the processes of a `group` the first has the reports; it alone writes and tells.
    """
    from lensae.model.precision import fast_matmul
    from lensae.sae.distributed.process_group import SINGLE_PROCESS
    from lensae.sae.kernels import use_backend
    from lensae.sae.train.loop import fit_all
    from lensae.sae.train.validation import NotFinite

    group = group or SINGLE_PROCESS
    watcher = (watcher if group.is_first else None) or Watcher()
    group.collectively(lambda: _check_shared([recipe for recipe, _name in wanted]))
    with ExitStack() as stack:
        trainings = [stack.enter_context(begun(data, recipe, name, command, group)) for recipe, name in wanted]
        stop = stack.enter_context(requested())
        watcher.begins(data.entry, trainings)
        first = trainings[0]
        group.collectively(lambda: _check_batch(trainings))
        stack.enter_context(fast_matmul())
        stack.enter_context(use_backend(_kernels(trainings, data.reader.width)))
        validation_rows = max(training.plan.validation_rows for training in trainings)
        sample = group.collectively(lambda: data.heldout_sample(first.plan.batch, validation_rows))
        try:
            fit_all(
                [training.run for training in trainings],
                data.stream(first.recipe, first.plan.batch, group),
                lambda: sample,
                stack.enter_context(_RunCallbacks(trainings if group.is_first else [], watcher, stop)),
                first.recipe.checkpoint_minutes,
            )
            return [_finished(data, training, stop, group) for training in trainings]
        except NotFinite as error:
            raise data.explain_not_finite(error) from None


def _kernels(trainings: list[Training], width: int):
    """Which kernels they use: what is faster for the widest of them."""
    from lensae.sae.kernels import choose_backend

    widest = max(trainings, key=lambda training: training.plan.d_sae)
    plan = widest.plan
    return choose_backend(plan.batch, width, plan.d_sae, plan.k, widest.run.device)


def _check_shared(recipes: list[TrainRecipe]) -> None:
    for name in SHARED:
        values = {getattr(recipe, name) for recipe in recipes}
        if len(values) > 1:
            raise UserError(f"SAEs on one pass cannot differ in {name}: {values}", "train them one by one")


def _check_batch(trainings: list[Training]) -> None:
    if len({training.plan.batch for training in trainings}) > 1:
        raise UserError("unfinished trainings of these settings have another batch", "finish them one by one")


class _RunCallbacks:
    """Hands on what the training loop tells (lensae.sae.train.loop.Callbacks), and keeps metrics.csv."""

    def __init__(self, trainings: list[Training], watcher: Watcher, stop):
        self.of = {id(training.run): training for training in trainings}
        self.step, self.watcher, self.stop = watcher.step, watcher, stop

    def __enter__(self) -> _RunCallbacks:
        paths = {key: training.folder.path / "tensorboard" for key, training in self.of.items()}
        self.events = {key: EventFile(path, self.of[key].run.state.history) for key, path in paths.items()}
        return self

    def __exit__(self, *_exc) -> None:
        for events in self.events.values():
            events.close()

    def measured(self, run, line) -> None:
        if id(run) not in self.of:
            return
        training = self.of[id(run)]
        write_metrics(training.folder.path / "metrics.csv", run.state.history)
        self.events[id(run)].add(line)
        self.watcher.epoch(training, line)


def _finished(data: Data, training: Training, stop, group: ProcessGroup) -> TrainReport | LensaeError | None:
    """Calibrated, measured on all held-out rows and saved, by the first process."""
    from lensae.sae.formats import saelens as checkpoint
    from lensae.sae.train.loop import result

    if group.any(stop())[0]:
        raise KeyboardInterrupt
    folder = training.folder
    if not folder and not group.splits_features:
        return None
    try:
        fit = result(training.run, data.heldout(training.plan.batch, FINAL_ROWS))
    except OtherProcessEnded:
        raise
    except LensaeError as error:
        if folder and not training.run.failed:  # nothing to go on from: its last checkpoint has no live feature
            folder.discard()
        return error
    sae = fit.sae(metadata(data, training.recipe))
    if folder:
        write_metrics(folder.path / "metrics.csv", fit.history)
    digest = checkpoint.save(folder.path if folder else None, sae, group)
    if not folder:
        return None
    facts = {**facts_of(data, training.recipe), **outcome(data, training.plan, fit), "weights_sha256": digest}
    folder.finish(facts)
    return TrainReport(data.entry.name, SaeEntry(folder.path, facts), training.recipe, training.plan, fit)
