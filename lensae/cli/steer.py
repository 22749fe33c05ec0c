"""steer"""

from __future__ import annotations

from typing import Annotated

from lensae.cli.help import examples, panel
from lensae.cli.options import SAE_HELP, SET_HELP, DeviceOption, JsonOption

EXAMPLES = examples(
    "steer --feature 447 --scale 8",
    "steer --feature 447 --scale 0.5 --scale 1 --scale 2",
    'steer --feature 447 --scale 1 --prompt "My plans for tomorrow:" --positions generated',
    "steer --feature 447 --op ablate",
)
PLUGINS = ("Operations", "steering.operations")
change, write, read = map(panel, ("What to change", "What the model writes", "What to read"))


def command(
    feature: Annotated[int, change("Number of the feature.")],
    scale: Annotated[
        list[float] | None, change("Strength, in multiples of the feature's maximum over the set. Default 1. *")
    ] = None,
    op: Annotated[str, change("Operation, one of those listed below.")] = "clamp",
    positions: Annotated[str, change("Tokens that are edited: all or generated.")] = "all",
    prompt: Annotated[list[str] | None, write("Text to continue. *")] = None,
    samples: Annotated[int, write("Continuations of each prompt; all are measured, one is shown.")] = 4,
    max_new_tokens: Annotated[int, write("Longest continuation, in tokens.")] = 48,
    seed: Annotated[int, write("Seed of sampling, the same for every condition.")] = 0,
    set_name: Annotated[str | None, read(SET_HELP, "--set")] = None,
    sae: Annotated[str | None, read(SAE_HELP, "--sae")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Change a feature while the model writes: text side by side, measured against controls.

    Every condition uses the same random numbers. The controls are another feature of like density and a random
    direction, at the same strength.

    Options marked * may be given several times.
    """
    from lensae.core.device import use_device
    from lensae.stages.steer.options import DEFAULT_PROMPTS, SteerOptions
    from lensae.stages.steer.run import steer
    from lensae.views import steer as view
    from lensae.views.console import current, out, print_json
    from lensae.views.progress import Watch

    options = SteerOptions(
        feature,
        tuple(scale or (1.0,)),
        op,
        tuple(prompt or DEFAULT_PROMPTS),
        positions,
        seed,
        max_new_tokens,
        samples,
        set_name=set_name,
        sae_name=sae,
    )
    with use_device(device), Watch() as watch:
        report = steer(options, watch)
    if as_json:
        print_json(view.as_json(report))
        return
    current(report.set_name, report.sae_name)
    view.show(out(), report)
