"""features top, list, show"""

from __future__ import annotations

from typing import Annotated

import typer

from lensae.cli.help import App, examples
from lensae.cli.options import JsonOption, SaeOption, SetOption

app = App(no_args_is_help=True, help="Look features up: activations, tokens, text.")
FeatureArgument = Annotated[int, typer.Argument(help="The feature's number.")]


@app.command("top", epilog=examples("features top 447 --k 20", "features top 447 --json"))
def top(
    feature: FeatureArgument,
    k: Annotated[int, typer.Option(help="How many.")] = 20,
    set_name: SetOption = None,
    sae: SaeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the strongest activations of a feature in their text, the firing token marked.

    Samples of one prompt share its tokens: such copies are shown once and counted (×8).
    """
    from lensae.stages import features as lookup
    from lensae.views import features as view
    from lensae.views.console import current, out, print_json
    from lensae.views.progress import Watch

    with Watch() as watch:
        opened = lookup.open_lookup(set_name, sae, watch)
    stats = opened.index.stats(feature)
    found = lookup.top(opened, feature, k)
    if as_json:
        examples_json = [view.example_json(e) for e in found]
        print_json(
            {"feature": feature, "count": stats.count, "density": stats.density, "max": stats.max}
            | {"set": opened.entry.name, "sae": opened.sae.name, "examples": examples_json}
        )
        return
    current(opened.entry.name, opened.sae.name)
    view.headline(out(), stats, opened.reader.rows)
    if found:
        view.examples(out(), found, stats.max)


@app.command("list", epilog=examples("features list --sort density", "features list --sort label --k 10"))
def list_(
    sort: Annotated[
        str, typer.Option(help="density, max, mean, or label (which features tell the set's labels apart).")
    ] = "density",
    k: Annotated[int, typer.Option(help="How many.")] = 20,
    set_name: SetOption = None,
    sae: SaeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List features: the densest, the strongest, or those that best separate the labels of the set."""
    from dataclasses import asdict

    from lensae.stages import features as lookup
    from lensae.views import features as view
    from lensae.views.console import current, out, print_json
    from lensae.views.progress import Watch

    with Watch() as watch:
        opened = lookup.open_lookup(set_name, sae, watch)
    scores = lookup.by_label(opened, k) if sort == "label" else []
    stats = lookup.ranked(opened, sort, k) if sort != "label" else []
    if as_json:
        print_json([asdict(score) for score in scores] + [asdict(one) for one in stats])
        return
    current(opened.entry.name, opened.sae.name)
    if sort == "label":
        view.label_list(out(), scores)
    else:
        view.feature_list(out(), stats)


@app.command("show", epilog=examples("features show 447"))
def show(
    feature: FeatureArgument,
    k: Annotated[int, typer.Option(help="How many examples.")] = 5,
    set_name: SetOption = None,
    sae: SaeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one feature: figures, histogram, tokens, labels and its strongest examples."""
    from lensae.index.file import EDGES
    from lensae.stages import features as lookup
    from lensae.views import features as view
    from lensae.views.console import current, out, print_json
    from lensae.views.progress import Watch

    with Watch() as watch:
        opened = lookup.open_lookup(set_name, sae, watch)
    found = lookup.show(opened, feature, k)
    if as_json:
        print_json(view.report_json(found))
        return
    current(opened.entry.name, opened.sae.name)
    view.report(out(), found, opened.reader.rows, EDGES)
