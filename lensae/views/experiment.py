"""Shows each stage of an experiment with the view of its command, and saves a picture of the last ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from lensae.views import collect, evaluate, features, figures, index, steer, train
from lensae.views.console import out
from lensae.views.picture import Picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from lensae.stages.experiment import ChosenFeature, StageReport


class Show:
    """Draws the reports of one experiment; the features and the steered text also go into a picture."""

    def __init__(self) -> None:
        self.picture = Picture()

    def __call__(self, done: StageReport) -> None:
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
                self._both(_feature, done.report)
            case "steer":
                self._both(steer.show, done.report)
            case "results":
                picture = self.picture.save(done.report.with_suffix(".svg"), "lensae")
                console.print(f"\n[dim]figures of this run in[/] {done.report}", soft_wrap=True)
                console.print(f"[dim]picture of the last stages in[/] {picture}", soft_wrap=True)

    def _both(self, draw: Callable[[Console, Any], None], report: Any) -> None:
        draw(out(), report)
        draw(self.picture.console, report)
        self.picture.console.print()


def _feature(console: Console, chosen: ChosenFeature) -> None:
    console.print(
        f"best for [bold]{chosen.score.label}[/]: AUROC {chosen.score.auroc:.2f} over documents, "
        f"{chosen.score.share:.0%} of its activation"
    )
    features.headline(console, chosen.stats, chosen.lookup.reader.rows)
    features.examples(console, chosen.examples, chosen.stats.max)
