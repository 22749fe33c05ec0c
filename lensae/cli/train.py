"""train"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lensae import registry
from lensae.cli.options import JsonOption, SetOption, command_line, examples

EXAMPLES = examples(
    "train", "train --width 8 --k 64", "train --arch relu --target-l0 40", "train --recipe my-recipe.toml"
)

FAMILIES = ", ".join(registry.names("sae.architectures"))


def command(
    arch: Annotated[str | None, typer.Option(help=f"One of {FAMILIES}. Default topk.")] = None,
    width: Annotated[float | None, typer.Option(help="Features, as a multiple of d_model. Default 4.")] = None,
    k: Annotated[int | None, typer.Option(help="Active features per token (the topk families). Default 32.")] = None,
    l1: Annotated[
        float | None, typer.Option(help="Weight of the L1 penalty (relu, tied-l1, gated). Default 0.1.")
    ] = None,
    target_l0: Annotated[
        float | None, typer.Option(help="Active features per token to aim at (jumprelu, and in place of --l1).")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the rows. Default: about 1.5 M tokens in all.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Training tokens in all, in place of --epochs.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. Default: from the budget.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows a step. Default 2048.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split, the start and the order. Default 0.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML file with a [train] table; flags override it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the SAE. Default: from its settings.")] = None,
    set_name: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a sparse autoencoder on an activation set, streaming from its shards.

    A tenth of the prompts is held out whole; training stops early when those stop improving; the best weights are
    kept, in the layout that SAELens loads.
    """
    from lensae.recipe import load_train

    settings = load_train(
        recipe,
        arch=arch,
        width=width,
        k=k,
        l1=l1,
        target_l0=target_l0,
        epochs=epochs,
        tokens=tokens,
        lr=lr,
        batch=batch,
        seed=seed,
    )
    from lensae.stages.train import train
    from lensae.views import train as view
    from lensae.views.console import out

    with view.LiveTraining() as watcher:
        report = train(settings, set_name, name, watcher, command_line())
    if as_json:
        view.as_json(report)
    else:
        view.show(out(), report)
