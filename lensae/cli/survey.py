"""survey"""

from __future__ import annotations

from typing import Annotated

import typer

from lensae.cli.help import examples
from lensae.cli.options import CORPUS_HELP, READERS, DeviceOption, JsonOption, ModelArgument

EXAMPLES = examples("survey", "survey gpt2-medium --max-tokens 20000", "survey --corpus my-texts.txt --json")
PLUGINS = READERS


def command(
    model: ModelArgument = None,
    corpus: Annotated[str, typer.Option(help=CORPUS_HELP)] = "themes",
    max_tokens: Annotated[int, typer.Option(help="How much of the corpus to read, from its start.")] = 4000,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure the residual stream after every block in one pass over some text, and say where to hook and why.

    Writes a figure (PNG) to experiments/results/.
    """
    from lensae.core.device import use_device
    from lensae.stages.survey import summary, survey
    from lensae.views import figures
    from lensae.views import survey as view
    from lensae.views.console import out, print_json
    from lensae.views.progress import Watch

    with use_device(device), Watch() as watch:
        report = survey(model, corpus, max_tokens, watch)
    picture = figures.survey(report)
    if as_json:
        print_json(summary(report) | {"figure": picture})
    else:
        view.show(out(), report, picture, model, corpus)
