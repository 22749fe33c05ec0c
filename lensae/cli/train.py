"""train"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lensae.cli.options import JsonOption, SetOption, command_line, examples

EXAMPLES = examples(
    "train",
    "train --width 8 --k 64",
    "train --arch relu --target-l0 40",
    "train --arch topk --arch batchtopk --k 16 --k 32 --k 64",
    "train --set smollm2-135m/blocks.15.hook_resid_post --target smollm2-135m/blocks.16.hook_resid_post",
    "train --recipe my-recipe.toml",
)

NOT_IN_RECIPE = ("recipe", "shard_features", "name", "index", "wandb", "set_name", "as_json")


def command(
    arch: Annotated[
        list[str] | None, typer.Option(help="Architecture, one of those listed below. Default topk. *")
    ] = None,
    width: Annotated[
        list[float] | None, typer.Option(help="Features, as a multiple of d_model. Default: from the set's size. *")
    ] = None,
    k: Annotated[list[int] | None, typer.Option(help="Active features per token. Default 32. *")] = None,
    l1: Annotated[
        list[float] | None,
        typer.Option(help="Weight of the sparsity penalty, where the architecture has one. Default 0.1. *"),
    ] = None,
    target_l0: Annotated[
        list[float] | None, typer.Option(help="Active features per token to aim at, in place of --l1 and --k. *")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the rows. Default: about 1.5 M tokens in all.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Training tokens in all, in place of --epochs.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. Default: from the budget.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows a step. Default: from the set's size.")] = None,
    shuffle_rows: Annotated[int | None, typer.Option(help="Rows shuffled at a time. Default 65,536.")] = None,
    encoder_dtype: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16 (faster; how far it selects the same features is measured and shown)."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Set of the same tokens whose rows are predicted: a transcoder.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of the split, the start and the order. Default 0. *")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML file with a \\[train] table; flags override it.")] = None,
    shard_features: Annotated[
        bool, typer.Option("--shard-features", help="Under torchrun: divide the features, not the rows.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the SAE. Default: from its settings.")] = None,
    index: Annotated[bool, typer.Option("--index/--no-index", help="Index the features at the end.")] = True,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="Log the measurements to Weights & Biases too, under the project lensae.")
    ] = False,
    set_name: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train sparse autoencoders on an activation set, streaming from its shards.

    A tenth of the prompts is held out whole; training stops early when those stop improving; the best weights are
    kept, in the layout that SAELens loads, and their features indexed. An interrupted training is resumed by the same
    command.

    Several processes train together under torchrun: torchrun --nproc-per-node 2 main.py train ... Each learns from its
    rows of every batch; with --shard-features each has some of the features, for SAEs too wide for one device.
    Either way the SAE is the one that a single process trains, except for rounding.

    Options marked * may be given several times: every combination is trained on one pass over the rows, and compared.
    """
    given = {key: value for key, value in locals().items() if key not in NOT_IN_RECIPE}
    from contextlib import ExitStack

    from lensae.core.recipe import load_sweep

    settings = load_sweep(recipe, **given)
    from lensae.views import train as view
    from lensae.views.console import out

    with ExitStack() as stack:
        watcher = live = stack.enter_context(view.LiveTraining())
        if wandb:
            from lensae.stages.train.wandb import WandbWatcher

            watcher = stack.enter_context(WandbWatcher(live, live.say))
        if len(settings) > 1:
            from lensae.stages.train.sweep import sweep as run
            from lensae.views import sweep as view
        else:
            from lensae.stages.train.run import train as run

            settings = settings[0]
        report = run(settings, set_name, name, watcher, command_line(), shard_features, index)
    if report is None:  # the first process reports
        return
    if as_json:
        view.as_json(report)
    else:
        view.show(out(), report)
