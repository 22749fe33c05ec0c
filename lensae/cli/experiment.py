"""experiment"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lensae.cli.help import examples
from lensae.cli.options import DeviceOption, JsonOption
from lensae.core import program

EXAMPLES = examples("experiment experiments/demo.toml")


def command(
    recipe: Annotated[
        Path, typer.Argument(help="TOML with tables \\[collect], \\[train], \\[features] and \\[steer].")
    ],
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Run a recipe end to end: collect, train, evaluate, index, features, steer; figures go to experiments/results."""
    from lensae.core.device import use_device
    from lensae.stages import experiment
    from lensae.views.console import err
    from lensae.views.experiment import Show
    from lensae.views.progress import Watch
    from lensae.views.train import LiveTraining

    show = Show()
    with use_device(device), Watch() as watch:
        for event in experiment.run(recipe, watch, LiveTraining):
            if isinstance(event, str):
                err().print(f"\n[bold cyan]$ {program.command(event)}[/]", soft_wrap=True)
            elif not as_json:
                show(event)
            elif event.stage == "results":
                sys.stdout.write(event.report.read_text(encoding="utf-8"))
