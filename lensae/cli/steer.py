"""steer"""

from __future__ import annotations

from typing import Annotated

import typer

from lensae.cli.options import JsonOption, SaeOption, SetOption, examples

EXAMPLES = examples(
    "steer --feature 447 --scale 8",
    "steer --feature 447 --scale 0.5 --scale 1 --scale 2",
    'steer --feature 447 --scale 1 --prompt "My plans for tomorrow:" --positions generated',
    "steer --feature 447 --op ablate",
)


def command(
    feature: Annotated[int, typer.Option(help="The feature's number.")],
    scale: Annotated[
        list[float] | None,
        typer.Option(
            help="Strength, in multiples of the feature's maximum over the set; repeat to compare. Default 1."
        ),
    ] = None,
    op: Annotated[str, typer.Option(help="Operation, one of those listed below.")] = "clamp",
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; repeat for several.")] = None,
    positions: Annotated[str, typer.Option(help="all or generated: the tokens that are edited.")] = "all",
    seed: Annotated[int, typer.Option(help="Of sampling, the same for every condition.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.")] = 48,
    samples: Annotated[int, typer.Option(help="Continuations of each prompt; all are measured, one is shown.")] = 4,
    set_name: SetOption = None,
    sae: SaeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a feature while the model writes: text side by side, measured against controls.

    Every condition uses the same random numbers. The controls are another feature of like density and a random
    direction, at the same strength.
    """
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
    with Watch() as watch:
        report = steer(options, watch)
    if as_json:
        print_json(view.as_json(report))
        return
    current(report.set_name, report.sae_name)
    view.show(out(), report)
