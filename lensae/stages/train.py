"""train: sparse autoencoders on an activation set, streamed from its shards."""

from __future__ import annotations

import shlex
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from lensae import registry
from lensae.errors import LensaeError, UserError
from lensae.paths import SaeEntry, SetEntry, safe_name
from lensae.recipe import TrainRecipe
from lensae.stages.event_files import EventFile
from lensae.stages.interrupts import requested
from lensae.stages.ranks import current
from lensae.stages.training_data import LOOK_ROWS, Data, open_data
from lensae.stages.training_facts import facts_of, metadata, outcome, write_metrics
from lensae.stages.training_folder import TrainingFolder, claim

SHARED = ("seed", "heldout", "batch", "target", "shuffle_rows")  # what decides the rows and their order


@dataclass(frozen=True)
class TrainReport:
    """What a training left behind."""

    set_name: str
    sae: SaeEntry
    recipe: TrainRecipe
    plan: object
    fit: object


@dataclass
class Training:
    """One SAE that is being trained: `recipe` as it was given, `settled` with its blanks filled in."""

    name: str
    recipe: TrainRecipe
    settled: TrainRecipe
    plan: object
    folder: TrainingFolder
    lane: object = field(repr=False)


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
) -> TrainReport:
    """Train the recipe's architecture on the set and save the best weights under `saes/<name>`.

    An interrupted training goes on from its checkpoint when the same recipe is trained on the same rows again, to the
    same bytes; `command` is what is typed for that. Raises UserError when the recipe cannot work on the set.
    """
    [report] = train_all(open_data(recipe, set_name), [(recipe, name)], watcher, command)
    if isinstance(report, LensaeError):
        raise report
    return report


def train_all(
    data: Data,
    wanted: list[tuple[TrainRecipe, str | None]],
    watcher: Watcher | None = None,
    command: str | None = None,
) -> list[TrainReport | LensaeError]:
    """Train every recipe (under its name) on one pass over the stream: a report for each, or what made it fail."""
    from lensae.model.precision import fast_matmul
    from lensae.sae.fit import fit_all
    from lensae.sae.kernels import using
    from lensae.sae.measure import NotFinite

    watcher = watcher or Watcher()
    _check_shared([recipe for recipe, _name in wanted])
    with ExitStack() as stack:
        trainings = [stack.enter_context(_begun(data, recipe, name, command)) for recipe, name in wanted]
        stop = stack.enter_context(requested())
        watcher.begins(data.entry, trainings)
        first = trainings[0]
        if len({training.plan.batch for training in trainings}) > 1:
            raise UserError("unfinished trainings of these settings have another batch", "finish them one by one")
        stack.enter_context(fast_matmul())
        stack.enter_context(using(_kernels(trainings, data.reader.width)))
        try:
            fit_all(
                [training.lane for training in trainings],
                data.stream(first.recipe, first.plan.batch),
                data.heldout(first.plan.batch, LOOK_ROWS),
                stack.enter_context(_Hooks(trainings, watcher, stop)),
                first.recipe.checkpoint_minutes,
            )
            return [_finished(data, training, stop) for training in trainings]
        except NotFinite as error:
            raise data.explain_not_finite(error) from None


def _kernels(trainings: list[Training], width: int):
    """Which kernels they use: what is faster for the widest of them."""
    from lensae.sae.kernels import choose

    widest = max(trainings, key=lambda training: training.plan.d_sae)
    plan = widest.plan
    return choose(plan.batch, width, plan.d_sae, plan.k, widest.lane.device)


def _device() -> str:
    import torch

    return current().device or ("cuda" if torch.cuda.is_available() else "cpu")


def _check_shared(recipes: list[TrainRecipe]) -> None:
    for name in SHARED:
        values = {getattr(recipe, name) for recipe in recipes}
        if len(values) > 1:
            raise UserError(f"SAEs on one pass cannot differ in {name}: {values}", "train them one by one")


@contextmanager
def _begun(data: Data, recipe: TrainRecipe, name: str | None, command: str | None):
    """A training with its folder held; a folder without a checkpoint or an SAE does not outlive a failure."""
    from lensae.sae import state
    from lensae.sae.lane import Lane
    from lensae.sae.plan import complete, make_plan

    architecture = registry.load("sae.architectures", recipe.arch)
    rows, width = data.split.training.rows, data.reader.width
    settled, plan = complete(recipe, rows, width), make_plan(recipe, rows, width)
    wanted = safe_name(name or default_name(settled, plan.d_sae))
    facts = {"command": _pinned(command, data.entry, recipe, name), **facts_of(data, recipe)}
    folder = claim(data.entry, wanted, bool(name), facts)
    try:
        settled, plan = state.begun(folder.checkpoint) or (settled, plan)
        lane = Lane(
            settled,
            plan,
            lambda window: architecture.Trainer(width, plan.d_sae, settled, window, data.d_out),
            folder.checkpoint,
            _device(),
        )
        state.load(lane)
        yield Training(folder.path.name, recipe, settled, plan, folder, lane)
    finally:
        if not folder.checkpoint.is_file() and not (folder.path / "cfg.json").is_file():
            folder.discard()
        folder.close()


def default_name(recipe: TrainRecipe, d_sae: int) -> str:
    """For example topk-2304-k32, of a recipe without blanks."""
    sparsity = registry.load("sae.architectures", recipe.arch).Trainer.sparsity(recipe)
    kind = "transcoder-" if recipe.target else ""
    start = "" if recipe.init_seed is None else f"-seed{recipe.init_seed}"
    bits = "" if recipe.encoder_dtype == "float32" else f"-{recipe.encoder_dtype}"
    return f"{kind}{recipe.arch}-{d_sae}-{sparsity}{bits}{start}"


def _pinned(command: str | None, entry: SetEntry, recipe: TrainRecipe, name: str | None) -> str:
    """A command line that trains the recipe on this set, whichever is the current one then; without a `command` what
    there are options for."""
    if command:
        return command if " --set" in command else f"{command} --set {shlex.quote(entry.name)}"
    flags = (
        "arch",
        "width",
        "k",
        "l1",
        "target_l0",
        "epochs",
        "tokens",
        "lr",
        "batch",
        "shuffle_rows",
        "encoder_dtype",
        "seed",
        "target",
    )
    default, words = TrainRecipe(), ["python", "main.py", "train", "--set", entry.name]
    for key in flags:
        if getattr(recipe, key) != getattr(default, key):
            words += ["--" + key.replace("_", "-"), str(getattr(recipe, key))]
    return shlex.join(words + (["--name", name] if name else []))


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
        training = self.of[id(lane)]
        write_metrics(training.folder.path / "metrics.csv", lane.place.history)
        self.events[id(lane)].add(line)
        self.watcher.epoch(training, line)


def _finished(data: Data, training: Training, stop) -> TrainReport | LensaeError:
    """Calibrated, measured on all held-out rows and saved."""
    from lensae.sae import checkpoint
    from lensae.sae.fit import result

    if stop():
        raise KeyboardInterrupt
    try:
        fit = result(training.lane, data.heldout(training.plan.batch))
    except LensaeError as error:
        if not training.lane.failed:  # nothing to go on from: its last checkpoint has no live feature
            training.folder.discard()
        return error
    folder = training.folder
    write_metrics(folder.path / "metrics.csv", fit.history)
    checkpoint.save(folder.path, fit.sae(metadata(data, training.recipe)))
    facts = {**facts_of(data, training.recipe), **outcome(data, training.plan, fit)}
    folder.finish(facts)
    return TrainReport(data.entry.name, SaeEntry(folder.path, facts), training.recipe, training.plan, fit)
