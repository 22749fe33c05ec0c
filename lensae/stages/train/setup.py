"""How a training begins, or goes on: its numbers, its folder and its state."""

from __future__ import annotations

import json
import shlex
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lensae.core import program, registry
from lensae.core.device import AUTO, current_device, requested_device
from lensae.core.errors import UserError
from lensae.core.paths import SetEntry, safe_name
from lensae.core.recipe import TrainRecipe
from lensae.stages.train.data import Data
from lensae.stages.train.folder import TrainingFolder, checkpoint_of, claim
from lensae.stages.train.record import facts_of

if TYPE_CHECKING:
    from lensae.sae.distributed.process_group import ProcessGroup
    from lensae.sae.train.schedule import Plan


@dataclass
class Training:
    """One SAE that is being trained: `recipe` as given, `settled` with its blanks filled in, `reasons` for these,
    `sparsity` what decides how many features fire."""

    name: str
    recipe: TrainRecipe
    settled: TrainRecipe
    plan: object
    folder: TrainingFolder | None
    run: object = field(repr=False)
    sparsity: str = ""
    reasons: tuple[str, ...] = ()


@contextmanager
def begun(data: Data, recipe: TrainRecipe, name: str | None, command: str | None, group: ProcessGroup):
    """A training with its folder held, by the first process; a folder without a checkpoint or an SAE does not outlive
    a failure."""
    chosen = group.collectively(lambda: _planned(data, recipe))
    settled, plan = _of_the_first(chosen, group)
    facts = {"command": _pinned(command, data.entry, recipe, name), **facts_of(data, recipe)}

    def claimed() -> TrainingFolder:
        wanted = safe_name(name or default_name(settled, plan.d_sae))
        return claim(data.entry, wanted, bool(name), facts)

    folder = group.collectively(lambda: claimed() if group.is_first else None)
    try:
        path = Path(group.broadcast_text(str(folder.path) if folder else ""))
        yield group.collectively(lambda: _training(data, recipe, settled, plan, path, folder, group))
    finally:
        if folder:
            if not folder.checkpoint.is_file() and not (folder.path / "cfg.json").is_file():
                folder.discard()
            folder.close()


def _planned(data: Data, recipe: TrainRecipe) -> tuple[TrainRecipe, Plan]:
    from lensae.sae.train.schedule import complete, make_plan

    registry.check("sae.architectures", recipe.arch)
    rows, width = data.split.training.rows, data.reader.width
    return complete(recipe, rows, width), make_plan(recipe, rows, width)


def _of_the_first(chosen: tuple[TrainRecipe, Plan], group: ProcessGroup) -> tuple[TrainRecipe, Plan]:
    """What the first process chose: machines with other cores might choose otherwise."""
    from lensae.sae.train.schedule import Plan

    settled, plan = json.loads(group.broadcast_text(json.dumps([asdict(one) for one in chosen])))
    return TrainRecipe(**settled), Plan(**plan)


def _training(
    data: Data, recipe: TrainRecipe, settled: TrainRecipe, plan: Plan, path: Path, folder: TrainingFolder | None, group
) -> Training:
    """The training as it is to begin, or as its checkpoint left it."""
    from lensae.sae.train import checkpoint as state
    from lensae.sae.train.run import TrainingRun
    from lensae.sae.train.schedule import explain

    checkpoint = checkpoint_of(path)
    settled, plan = state.begun(checkpoint) or (settled, plan)
    family = registry.load("sae.architectures", recipe.arch)

    def trainer(window: int):
        return family.Trainer(data.reader.width, plan.d_sae, settled, window, data.d_out, group)

    run = TrainingRun(settled, plan, trainer, checkpoint, _device(group))
    state.load(run)
    reasons = tuple(explain(recipe, plan, data.reader.width))
    return Training(path.name, recipe, settled, plan, folder, run, family.Trainer.sparsity(settled), reasons)


def _device(group: ProcessGroup) -> str:
    """The device to train on; several processes exchange what lies in the processors' memory."""
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
    default, words = TrainRecipe(), ["train", "--set", entry.name]
    for key in flags:
        if getattr(recipe, key) != getattr(default, key):
            words += ["--" + key.replace("_", "-"), str(getattr(recipe, key))]
    return program.command(program.join(words + (["--name", name] if name else [])))
