"""Each stage of an experiment by the view that its own command uses."""

from __future__ import annotations

from lensae.views import collect, evaluate, features, figures, index, steer, train
from lensae.views.console import out


def show(done) -> None:
    """Draw the report of one stage."""
    console = out()
    match done.stage:
        case "collect":
            collect.show(console, done.report, next_step=False)
        case "train":
            train.show(console, done.report, next_step=False)
        case "evaluate":
            evaluate.show(console, done.report, figures.of_evaluation(done.report))
        case "index":
            index.show(console, done.report, next_step=False)
        case "features":
            _feature(console, done.report)
        case "steer":
            steer.show(console, done.report)
        case "results":
            console.print(f"\n[dim]figures of this run in[/] {done.report}", soft_wrap=True)


def _feature(console, chosen) -> None:
    console.print(f"best for [bold]{chosen.score.label}[/]: AUROC {chosen.score.auroc:.2f} over documents")
    features.headline(console, chosen.stats, chosen.lookup.reader.rows)
    features.examples(console, chosen.examples, chosen.stats.max)
