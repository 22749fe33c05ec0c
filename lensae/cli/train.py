"""train"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lensae.cli.help import RUN, examples, panel
from lensae.cli.options import SET_HELP, DeviceOption, JsonOption
from lensae.core.program import command_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from lensae.core.recipe import TrainRecipe
    from lensae.stages.train.watcher import Watcher


EXAMPLES = examples(
    "train",
    "train --width 8 --k 64",
    "train --arch relu --target-l0 40",
    "train --arch topk --arch batchtopk --k 16 --k 32 --k 64",
    "train --set smollm2-135m/blocks.15.hook_resid_post --target smollm2-135m/blocks.16.hook_resid_post",
    "train --recipe my-recipe.toml",
    parallel="train --epochs 1",
)

PLUGINS = ("Architectures", "sae.architectures")
NOT_IN_RECIPE = ("recipe", "shard_features", "name", "index", "wandb", "set_name", "device", "as_json")
learn, read, pace, keep, run = map(
    panel, ("What to train", "What to read", "How long and how fast", "Where it goes", RUN)
)


def command(
    arch: Annotated[list[str] | None, learn("Architecture, one of those listed below. Default topk. *")] = None,
    width: Annotated[
        list[float] | None, learn("Features, as a multiple of d_model. Default: from the set's size. *")
    ] = None,
    k: Annotated[list[int] | None, learn("Active features per token. Default 32. *")] = None,
    l1: Annotated[
        list[float] | None, learn("Weight of the L1 penalty, where the architecture has one. Default 0.1. *")
    ] = None,
    target_l0: Annotated[list[float] | None, learn("Active features per token to aim at, in place of --l1. *")] = None,
    seed: Annotated[
        list[int] | None, learn("Seed of the held-out rows, the first weights and the order. Default 0. *")
    ] = None,
    recipe: Annotated[Path | None, learn("TOML file with a \\[train] table; options override it.")] = None,
    set_name: Annotated[str | None, read(SET_HELP, "--set")] = None,
    target: Annotated[str | None, read("Set of the same tokens whose rows are predicted: a transcoder.")] = None,
    epochs: Annotated[int | None, pace("Passes over the rows. Default: about 1.5 M tokens in all.")] = None,
    tokens: Annotated[int | None, pace("Training tokens in all, in place of --epochs.")] = None,
    lr: Annotated[float | None, pace("Learning rate. Default: from the budget.")] = None,
    batch: Annotated[int | None, pace("Rows per step. Default: from the set's size.")] = None,
    shuffle_rows: Annotated[int | None, pace("Rows shuffled at a time. Default 65,536.")] = None,
    encoder_dtype: Annotated[
        str | None,
        pace("float32 or bfloat16 (faster; how far it selects the same features is measured and shown)."),
    ] = None,
    name: Annotated[str | None, keep("Name of the SAE. Default: from its settings.")] = None,
    index: Annotated[
        bool, keep("Build the feature index at the end, of several SAEs the best one's.", "--index/--no-index")
    ] = True,
    wandb: Annotated[
        bool, keep("Log the measurements to Weights & Biases too, under the project lensae.", "--wandb")
    ] = False,
    shard_features: Annotated[
        bool, run("Under torchrun: divide the features, not the rows.", "--shard-features")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train sparse autoencoders on an activation set, streaming from its shards.

    A tenth of the prompts is held out whole; training stops early when their loss stops improving; the best weights are
    kept, in the layout that SAELens loads, and their features are indexed. An interrupted training is resumed when the
    same command is given again.

    Several processes train one SAE under torchrun. Each learns from its share of every batch; with --shard-features
    each holds a share of the features, for SAEs too wide for one device. Either way the SAE is the one that a single
    process trains, but for rounding.

    Options marked * may be given several times: every combination is trained on one pass over the rows, and compared.
    """
    given = {key: value for key, value in locals().items() if key not in NOT_IN_RECIPE}
    from contextlib import ExitStack

    from lensae.core.device import use_device
    from lensae.core.recipe import load_sweep

    recipes = load_sweep(recipe, **given)
    from lensae.views.train import LiveTraining

    with ExitStack() as stack:
        stack.enter_context(use_device(device))
        live = stack.enter_context(LiveTraining())
        watcher: Watcher = live
        if wandb:
            from lensae.stages.train.wandb import WandbWatcher

            watcher = stack.enter_context(WandbWatcher(live, live.say))
        options = (set_name, name, watcher, command_line(), shard_features, index)
        show = _train_several(recipes, *options) if len(recipes) > 1 else _train_one(recipes[0], *options)
    show(as_json)


def _train_one(recipe: TrainRecipe, *options: Any) -> Callable[[bool], None]:
    """Train one SAE; returns what shows its report (nothing, where another process has it)."""
    from lensae.stages.train.run import train
    from lensae.views import train as view
    from lensae.views.console import out

    report = train(recipe, *options)
    return lambda as_json: None if report is None else view.as_json(report) if as_json else view.show(out(), report)


def _train_several(recipes: list[TrainRecipe], *options: Any) -> Callable[[bool], None]:
    """The same for several SAEs on one pass over the rows."""
    from lensae.stages.train.sweep import sweep
    from lensae.views import sweep as view
    from lensae.views.console import out

    report = sweep(recipes, *options)
    return lambda as_json: None if report is None else view.as_json(report) if as_json else view.show(out(), report)
