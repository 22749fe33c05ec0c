"""Trainings as they run: a live table of measurements and a bar, or plain lines away from a terminal."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lensae.core.program import command
from lensae.stages.train.watcher import Watcher
from lensae.views import index as index_view
from lensae.views.console import err, print_json
from lensae.views.curves import of_training
from lensae.views.progress import Watch

if TYPE_CHECKING:
    from lensae.core.paths import SetEntry
    from lensae.stages.train.run import TrainReport
    from lensae.stages.train.setup import Training
    from lensae.stages.train.watcher import Measurement


PLAIN_EVERY_S = 3.0
SHOWN_LINES = 16
COLUMNS = ("SAE", "epoch", "tokens", "loss", "parts", "held-out loss", "EV", "L0", "dead", "tokens/s", "")
ONE_SAE, SEVERAL_SAES = range(1, len(COLUMNS)), (0, 1, 2, 3, 6, 7, 8, 10)  # the columns that are shown


class LiveTraining(Watcher):
    """Draws a training, or several at once, and the building of the index after it; a context manager."""

    def __init__(self) -> None:
        self.console = err()
        self.live: Live | None = None
        self.rows: list[tuple[str, ...]] = []
        self.printed_at: dict[str, float] = {}
        self.index_bar: Watch | None = None

    def __enter__(self) -> LiveTraining:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close_table()
        if self.index_bar is not None:
            self.index_bar.__exit__(*exc)
            self.index_bar = None

    def _close_table(self) -> None:
        if self.live is not None:
            self.live.update(self._view(done=True))
            self.live.stop()
            self.live = None

    def say(self, text: str) -> None:
        """A line above the table."""
        self.console.print(text, style="yellow", markup=False, soft_wrap=True)

    def started(self, entry: SetEntry, trainings: list[Training]) -> None:
        """Say what will be trained, and why these numbers."""
        self.plan, self.several = trainings[0].plan, len(trainings) > 1
        self.count = len(trainings)
        self.tokens = self.resumed_tokens = min(training.run.state.tokens for training in trainings)
        self.losses: list[dict[str, float]] = []
        self.started_at = time.monotonic()
        named = "" if self.several else f"   [dim]SAE[/] {trainings[0].name}"
        self.console.print(f"[dim]set[/] {entry.name}{named}")
        self._describe(entry, trainings)
        for training in trainings:
            for line in training.run.state.history:
                self._add(training, line)
        if self.console.is_terminal:
            self.live = Live(self._view(), console=self.console, refresh_per_second=4, transient=False)
            self.live.start()

    def _describe(self, entry: SetEntry, trainings: list[Training]) -> None:
        first = trainings[0]
        recipe, plan, state = first.resolved, first.plan, first.run.state
        if self.several:
            names = ", ".join(training.name for training in trainings)
            self.console.print(f"{len(trainings)} SAEs on one pass over the rows: {names}")
            what = ""
        else:
            what = f"{recipe.arch}: {plan.d_sae:,} features ({recipe.width:g} x {entry.manifest.width}), "
            what += f"{first.sparsity}, "
        self.console.print(
            f"{what}{plan.epochs} epochs of {plan.rows:,} training rows, batch {plan.batch:,}, "
            f"learning rate {plan.lr:g}, seed {recipe.seed}"
        )
        if not self.several:
            *reasons, duration = first.reasons
            for line in ["; ".join(reasons), duration] if reasons else [duration]:
                self.console.print(f"[dim]{line}[/]", soft_wrap=True)
        if state.step:
            self.console.print(f"resuming at step {state.step:,} of {plan.steps:,} ({state.tokens:,} tokens)")

    def step(self, rows: int, losses: list[dict[str, float]]) -> None:
        """Count the rows and keep the latest losses."""
        self.tokens += rows
        self.losses = losses
        if self.live is not None:
            self.live.update(self._view())

    def measured(self, training: Training, line: Measurement) -> None:
        """One more line of the table."""
        row = self._add(training, line)
        last = line.step == training.plan.steps
        due = time.monotonic() - self.printed_at.get(training.name, 0.0) > PLAIN_EVERY_S * self.count
        if self.live is None and (last or due):
            self.printed_at[training.name] = time.monotonic()
            name = f"{training.name} " if self.several else ""
            _name, epoch, tokens, loss, parts, heldout, ev, l0, dead, rate, best = row
            self.console.print(
                f"{name}epoch {epoch}: {tokens} tokens, loss {loss} ({parts}), held-out loss {heldout}, EV {ev}, "
                f"L0 {l0}, dead {dead}, {rate} tokens/s {best}".rstrip(),
                markup=False,
                soft_wrap=True,
            )

    def indexing(self) -> Watch:
        """Leave the table as it is and show a bar below it."""
        self._close_table()
        self.index_bar = Watch()
        return self.index_bar

    def _add(self, training: Training, line: Measurement) -> tuple[str, ...]:
        row = (
            training.name,
            f"{line.epoch}",
            f"{line.tokens:,}",
            f"{line.loss:.4f}",
            " ".join(f"{name} {value:.3f}" for name, value in line.losses.items()),
            f"{line.heldout_loss:.4f}",
            f"{line.explained_variance_typical:.4f}",
            f"{line.l0:.1f}",
            f"{line.dead_share:.1%}",
            f"{line.tokens / max(line.seconds, 1e-9):,.0f}",
            "best" if line.best else "",
        )
        self.rows.append(row)
        return row

    def _view(self, done: bool = False) -> Group:
        table = Table(box=None, pad_edge=False)
        chosen = SEVERAL_SAES if self.several else ONE_SAE
        for column in (COLUMNS[i] for i in chosen):
            side = "left" if column in ("SAE", "parts", "") else "right"
            table.add_column(column, justify="right" if side == "right" else "left", no_wrap=column == "SAE")
        latest = {row[0]: row for row in self.rows}
        for row in list(latest.values()) if self.several else self.rows[-SHOWN_LINES:]:
            table.add_row(*(row[i] for i in chosen))
        if done:
            return Group(table)
        elapsed = time.monotonic() - self.started_at
        total = self.plan.steps * self.plan.batch
        rate = (self.tokens - self.resumed_tokens) / max(elapsed, 1e-9)
        left = max(total - self.tokens, 0) / rate if rate else 0
        loss = " ".join(f"{name} {value:.3f}" for name, value in (self.losses or [{}])[0].items())
        line = f"{min(self.tokens / total, 1):4.0%}  {rate:,.0f} tokens/s  {left:,.0f} s left  {loss}"
        return Group(table, Text(line, style="cyan"))


def show(console: Console, report: TrainReport, next_step: bool = True) -> None:
    """The result of the training and its index, and the next commands."""
    heldout = report.fit.heldout
    massive = f" ({heldout.massive_rows:,} massive rows left out)" if heldout.massive_rows else ""
    console.print(
        f"[bold]{report.sae.name}[/]: explained variance [bold]{heldout.explained_variance_typical:.3f}[/]{massive}, "
        f"L0 {heldout.l0:.1f}, dead {heldout.dead_share:.1%} on {heldout.rows:,} held-out rows "
        f"({report.fit.stopped}, {report.fit.seconds:,.0f} s)"
    )
    if report.fit.agreement is not None:
        console.print(
            f"{report.recipe.encoder_dtype} encoder: on held-out rows it selects {report.fit.agreement:.3%} of what "
            "float32 does"
        )
    if report.index:
        index_view.show(console, report.index, next_step=False)
    console.print(f"[dim]in[/] {report.sae.path}", soft_wrap=True)
    for path in of_training(report):
        console.print(f"[dim]figure[/] {path}", soft_wrap=True)
    if next_step:
        console.print(f"[dim]next:[/] {command('evaluate')}, {command('features list --sort label')}")


def as_json(report: TrainReport) -> None:
    """Print training.json, with the SAE's name and path, its figures and its index."""
    figures, index = of_training(report), asdict(report.index) if report.index else None
    about = {"sae": report.sae.name, "path": report.sae.path, "figures": figures, "index": index}
    print_json({**about, **report.sae.record.to_json()})
