"""How a training begins or is resumed: its plan, its folder and its state."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lensae.core import program, registry
from lensae.core.device import AUTO, current_device, requested_device
from lensae.core.errors import UserError
from lensae.core.paths import SetEntry, safe_name
from lensae.core.recipe import TrainRecipe
from lensae.core.training_record import TrainingRecord
from lensae.stages.train.data import TrainingData
from lensae.stages.train.folder import TrainingFolder, checkpoint_of, open_folder
from lensae.stages.train.record import new_record

if TYPE_CHECKING:
    from lensae.sae.architectures._base import BaseTrainer
    from lensae.sae.distributed.process_group import ProcessGroup
    from lensae.sae.train.run import TrainingRun
    from lensae.sae.train.schedule import Plan


# The fields of a recipe that have an option of the same name on the command line.
OPTIONS = (
    *("arch", "width", "k", "l1", "target_l0", "epochs", "tokens", "lr", "batch", "shuffle_rows", "encoder_dtype"),
    *("seed", "target"),
)


@dataclass(kw_only=True)
class Training:
    """One SAE that is being trained: `recipe` as it was given, `resolved` with its blanks filled in, `reasons` for
    these choices, `sparsity` what decides how many features fire. Its files are in `path`; `folder`, by which they are
    changed, is None in all processes but the first."""

    path: Path
    recipe: TrainRecipe
    resolved: TrainRecipe
    plan: Plan
    record: TrainingRecord
    folder: TrainingFolder | None
    run: TrainingRun = field(repr=False)
    sparsity: str = ""
    reasons: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the SAE."""
        return self.path.name


@contextmanager
def open_training(
    data: TrainingData, recipe: TrainRecipe, name: str | None, command: str | None, group: ProcessGroup
) -> Iterator[Training]:
    """A training, new or as its checkpoint left it; the first process has its folder locked meanwhile.

    A folder that holds neither a checkpoint nor an SAE at the end is removed.
    """
    chosen = group.collectively(lambda: _planned(data, recipe))
    resolved, plan = _from_first_process(chosen, group)
    record = new_record(data, recipe, _resume_command(command, data.entry, recipe, name))

    def opened() -> TrainingFolder | None:
        wanted = safe_name(name or default_name(resolved, plan.d_sae))
        return open_folder(data.entry, wanted, bool(name), record) if group.is_first else None

    folder = group.collectively(opened)
    try:
        path = Path(group.broadcast_text(str(folder.path) if folder else ""))
        yield group.collectively(lambda: _restored(data, resolved, plan, record, path, folder, group))
    finally:
        if folder:
            if not folder.checkpoint.is_file() and not (folder.path / "cfg.json").is_file():
                folder.discard()
            folder.close()


def _planned(data: TrainingData, recipe: TrainRecipe) -> tuple[TrainRecipe, Plan]:
    from lensae.sae.train.schedule import complete, make_plan

    rows, width = data.split.training.rows, data.reader.width
    return complete(recipe, rows, width), make_plan(recipe, rows, width)


def _from_first_process(chosen: tuple[TrainRecipe, Plan], group: ProcessGroup) -> tuple[TrainRecipe, Plan]:
    """What the first process chose: machines with other cores might choose otherwise."""
    from lensae.sae.train.schedule import Plan

    resolved, plan = json.loads(group.broadcast_text(json.dumps([asdict(one) for one in chosen])))
    return TrainRecipe(**resolved), Plan(**plan)


def _restored(
    data: TrainingData,
    resolved: TrainRecipe,
    plan: Plan,
    record: TrainingRecord,
    path: Path,
    folder: TrainingFolder | None,
    group: ProcessGroup,
) -> Training:
    """The training as it begins, or as its checkpoint left it."""
    from lensae.sae.train import checkpoint
    from lensae.sae.train.run import TrainingRun
    from lensae.sae.train.schedule import explain

    checkpoint_path = checkpoint_of(path)
    resolved, plan = checkpoint.read_plan(checkpoint_path) or (resolved, plan)
    family = registry.load("sae.architectures", record.recipe.arch)

    def make_trainer(window: int) -> BaseTrainer:
        return family.Trainer(data.reader.width, plan.d_sae, resolved, window, data.d_out, group)

    run = TrainingRun(resolved, plan, make_trainer, checkpoint_path, _device(group))
    checkpoint.load(run)
    return Training(
        path=path,
        recipe=record.recipe,
        resolved=resolved,
        plan=plan,
        record=record,
        folder=folder,
        run=run,
        sparsity=family.Trainer.sparsity(resolved),
        reasons=tuple(explain(record.recipe, plan, data.reader.width)),
    )


def _device(group: ProcessGroup) -> str:
    """The device to train on; several processes exchange what is in the memory of the CPU."""
    if group.is_single:
        return current_device()
    if requested_device() not in (AUTO, "cpu"):
        raise UserError("several processes train on the CPU only", "leave --device out, or start one process")
    return "cpu"


def default_name(recipe: TrainRecipe, d_sae: int) -> str:
    """For example topk-2304-k32, of a recipe without blanks."""
    sparsity = registry.load("sae.architectures", recipe.arch).Trainer.sparsity(recipe)
    kind = "transcoder-" if recipe.target else ""
    start = "" if recipe.init_seed is None else f"-seed{recipe.init_seed}"
    bits = "" if recipe.encoder_dtype == "float32" else f"-{recipe.encoder_dtype}"
    return f"{kind}{recipe.arch}-{d_sae}-{sparsity}{bits}{start}"


def _resume_command(command: str | None, entry: SetEntry, recipe: TrainRecipe, name: str | None) -> str:
    """A command line that trains the recipe on this set, whichever set is the current one by then.

    Without a `command` it has what the recipe says, as far as options exist for it.
    """
    if command:
        return command if " --set" in command else f"{command} --set {shlex.quote(entry.name)}"
    default, words = TrainRecipe(), ["train", "--set", entry.name]
    for option in OPTIONS:
        if getattr(recipe, option) != getattr(default, option):
            words += ["--" + option.replace("_", "-"), str(getattr(recipe, option))]
    return program.command(program.join(words + (["--name", name] if name else [])))
