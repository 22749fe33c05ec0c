"""train: sparse autoencoders on an activation set, streamed from its shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from lensae.core.errors import LensaeError, OtherProcessEnded, UserError
from lensae.core.paths import SaeEntry
from lensae.core.program import command as command_for
from lensae.core.recipe import TrainRecipe
from lensae.stages import index as feature_index
from lensae.stages.shared.interrupts import requested
from lensae.stages.shared.processes import current, training_group
from lensae.stages.train.checks import check_recipe
from lensae.stages.train.data import FINAL_ROWS, TrainingData, open_data
from lensae.stages.train.record import finished_record, metadata, write_metrics
from lensae.stages.train.setup import Training, open_training
from lensae.stages.train.tensorboard import EventFile
from lensae.stages.train.watcher import Watcher

if TYPE_CHECKING:
    from lensae.sae.distributed.process_group import ProcessGroup
    from lensae.sae.kernels import Backend
    from lensae.sae.train.loop import Callbacks, TrainingResult
    from lensae.sae.train.run import Measurement, TrainingRun
    from lensae.sae.train.schedule import Plan

SHARED = ("seed", "heldout", "batch", "target", "shuffle_rows")  # what decides the rows and their order


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """The result of a training; `index` is None where no index was built."""

    set_name: str
    sae: SaeEntry
    recipe: TrainRecipe
    plan: Plan
    fit: TrainingResult
    index: feature_index.IndexReport | None = None


def train(
    recipe: TrainRecipe,
    set_name: str | None = None,
    name: str | None = None,
    watcher: Watcher | None = None,
    command: str | None = None,
    shard_features: bool = False,
    index: bool = True,
) -> TrainReport | None:
    """Train the recipe's architecture on the set, save the best weights under `saes/<name>` and index its features.

    An interrupted training is resumed from its checkpoint, to the same bytes, when the same recipe is trained on the
    same rows again; `command` is what a person types for that. Without `index` no feature index is built. Under
    torchrun the processes train one SAE together: each learns from its rows of every batch, or with `shard_features`
    has some of the features; the first one builds the index and returns the report, the others return None.
    Raises UserError when the recipe cannot work on the set.
    """
    data = open_data(recipe, set_name)
    check_recipe(data, recipe, current().world_size if shard_features else 1)
    with training_group(shard_features) as group:
        reports = train_all(data, [(recipe, name)], watcher, command, group)
    if not group.is_first:
        return None
    [report] = reports
    if isinstance(report, LensaeError):
        raise report
    if report is None or not index:
        return report
    return replace(report, index=build_index(data, report.sae, watcher))


def build_index(data: TrainingData, sae: SaeEntry, watcher: Watcher | None) -> feature_index.IndexReport:
    """Index the features of an SAE that has just been trained, by one process."""
    progress = (watcher or Watcher()).indexing()
    try:
        return feature_index.build(str(data.entry.path), str(sae.path), progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{sae.name} is trained; finish its index with: {command_for('index')}") from None


def train_all(
    data: TrainingData,
    wanted: list[tuple[TrainRecipe, str | None]],
    watcher: Watcher | None = None,
    command: str | None = None,
    group: ProcessGroup | None = None,
) -> list[TrainReport | LensaeError | None]:
    """Train every recipe (under its name) on one pass over the stream: a report for each, or why it failed.

    Of the processes of a `group` the first has the reports; it alone writes and calls the watcher. torch's global
    random state is afterwards what it was.
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
        stack.enter_context(_random_state_kept())
        trainings = [stack.enter_context(open_training(data, recipe, name, command, group)) for recipe, name in wanted]
        stop = stack.enter_context(requested())
        watcher.started(data.entry, trainings)
        first = trainings[0]
        group.collectively(lambda: _check_batch(trainings))
        stack.enter_context(fast_matmul())
        stack.enter_context(use_backend(_backend(trainings, data.reader.width)))
        validation_rows = max(training.plan.validation_rows for training in trainings)
        sample = group.collectively(lambda: data.heldout_sample(first.plan.batch, validation_rows))
        callbacks = stack.enter_context(_LoopCallbacks(trainings if group.is_first else [], watcher, stop))
        try:
            fit_all(
                [training.run for training in trainings],
                data.stream(first.recipe, first.plan.batch, group),
                lambda: sample,
                cast("Callbacks", callbacks),
                first.recipe.checkpoint_minutes,
            )
            return [_finish(data, training, stop, group) for training in trainings]
        except NotFinite as error:
            raise data.explain_not_finite(error) from None


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """torch's global generators are afterwards as they were."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def _backend(trainings: list[Training], width: int) -> Backend:
    """The kernels that are fastest for the widest of the SAEs."""
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


class _LoopCallbacks:
    """The callbacks of the training loop (lensae.sae.train.loop.Callbacks): call the watcher, write the metrics."""

    def __init__(self, trainings: list[Training], watcher: Watcher, stop: Callable[[], bool]):
        self.trainings = {id(training.run): training for training in trainings}
        self.step, self.watcher, self.stop = watcher.step, watcher, stop

    def __enter__(self) -> _LoopCallbacks:
        self.event_files = {
            key: EventFile(training.path / "tensorboard", training.run.state.history)
            for key, training in self.trainings.items()
        }
        return self

    def __exit__(self, *_exc: object) -> None:
        for event_file in self.event_files.values():
            event_file.close()

    def measured(self, run: TrainingRun, line: Measurement) -> None:
        if id(run) not in self.trainings:
            return
        training = self.trainings[id(run)]
        write_metrics(training.path / "metrics.csv", run.state.history)
        self.event_files[id(run)].add(line)
        self.watcher.measured(training, line)


def _finish(
    data: TrainingData, training: Training, stop: Callable[[], bool], group: ProcessGroup
) -> TrainReport | LensaeError | None:
    """Calibrate, measure on held-out rows and save, in the first process; None in the others."""
    from lensae.sae.formats import saelens
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
        if folder and not training.run.failed:  # its last checkpoint has no live feature: nothing to resume
            folder.discard()
        return error
    sae = fit.sae(metadata(data, training.recipe))
    if folder:
        write_metrics(folder.path / "metrics.csv", fit.history)
    digest = saelens.save(folder.path if folder else None, sae, group)
    if not folder:
        return None
    record = finished_record(training.record, data, training.plan, fit, digest)
    folder.finish(record)
    entry = SaeEntry(folder.path, record)
    return TrainReport(set_name=data.entry.name, sae=entry, recipe=training.recipe, plan=training.plan, fit=fit)
