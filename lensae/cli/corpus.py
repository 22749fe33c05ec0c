"""corpus stats"""

from __future__ import annotations

from typing import Annotated

import typer

from lensae.cli.help import App, examples
from lensae.cli.options import JsonOption

app = App(no_args_is_help=True, help="Look at corpora.")


@app.callback()
def group() -> None:
    """Look at corpora."""


@app.command("stats", epilog=examples("corpus stats themes", "corpus stats my-texts.jsonl"))
def stats(
    name: Annotated[str, typer.Argument(help="A shipped corpus (themes, probes, transport) or a file.")],
    model: Annotated[str | None, typer.Option(help="Model whose tokenizer counts the tokens.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Count prompts, words, labels, content words and tokens."""
    from dataclasses import asdict

    from lensae.stages.corpus import stats as count
    from lensae.views import corpus as view
    from lensae.views.console import out, print_json

    statistics = count(name, model)
    if as_json:
        print_json(asdict(statistics))
    else:
        view.show(out(), statistics)
