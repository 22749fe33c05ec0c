"""A training as it runs: a live table of epochs and a bar, or plain lines away from a terminal."""

from __future__ import annotations

import time

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lensae import registry
from lensae.stages.train import Watcher
from lensae.views.console import err, print_json

PLAIN_EVERY_S = 3.0
SHOWN_EPOCHS = 16
COLUMNS = ("epoch", "tokens", "loss", "parts", "held-out loss", "EV", "L0", "dead", "tokens/s", "")


class LiveTraining(Watcher):
    """Draws a training; a context manager."""

    def __init__(self):
        self.console = err()
        self.live: Live | None = None
        self.rows: list[tuple[str, ...]] = []
        self.told = 0.0

    def __enter__(self) -> LiveTraining:
        return self

    def __exit__(self, *_exc) -> None:
        if self.live is not None:
            self.live.update(self._view(done=True))
            self.live.stop()
            self.live = None

    def begins(self, entry, name: str, recipe, plan) -> None:
        """Say what will be trained, and why these numbers."""
        self.plan, self.tokens, self.losses = plan, 0, {}
        self.started = time.monotonic()
        sparsity = registry.load("sae.architectures", recipe.arch).Trainer.sparsity(recipe)
        self.console.print(f"[dim]set[/] {entry.name}   [dim]SAE[/] {name}")
        self.console.print(
            f"{recipe.arch}: {plan.d_sae:,} features ({recipe.width:g} x {entry.manifest['width']}), {sparsity}, "
            f"{plan.epochs} epochs of {plan.rows:,} training rows, batch {plan.batch:,}, "
            f"learning rate {plan.lr:g}, seed {recipe.seed}"
        )
        if self.console.is_terminal:
            self.live = Live(self._view(), console=self.console, refresh_per_second=4, transient=False)
            self.live.start()

    def step(self, rows: int, losses: dict[str, float]) -> None:
        """Count the rows and keep the latest losses."""
        self.tokens += rows
        self.losses = losses
        if self.live is not None:
            self.live.update(self._view())

    def epoch(self, epoch) -> None:
        """One more line of the table."""
        parts = " ".join(f"{name} {value:.3f}" for name, value in epoch.losses.items())
        row = (
            f"{epoch.epoch}",
            f"{epoch.tokens:,}",
            f"{epoch.loss:.4f}",
            parts,
            f"{epoch.heldout_loss:.4f}",
            f"{epoch.explained_variance:.4f}",
            f"{epoch.l0:.1f}",
            f"{epoch.dead_share:.1%}",
            f"{epoch.tokens / max(epoch.seconds, 1e-9):,.0f}",
            "best" if epoch.best else "",
        )
        self.rows.append(row)
        last = epoch.epoch == self.plan.epochs
        if self.live is None and (last or time.monotonic() - self.told > PLAIN_EVERY_S):
            self.told = time.monotonic()
            self.console.print(
                f"epoch {row[0]}: {row[1]} tokens, loss {row[2]} ({row[3]}), held-out loss {row[4]}, EV {row[5]}, "
                f"L0 {row[6]}, dead {row[7]}, {row[8]} tokens/s {row[9]}".rstrip(),
                markup=False,
                soft_wrap=True,
            )

    def _view(self, done: bool = False) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in ("parts", "") else "right")
        for row in self.rows[-SHOWN_EPOCHS:]:
            table.add_row(*row)
        if done:
            return Group(table)
        elapsed = time.monotonic() - self.started
        total = self.plan.steps * self.plan.batch
        rate = self.tokens / max(elapsed, 1e-9)
        left = max(total - self.tokens, 0) / rate if rate else 0
        loss = " ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        line = f"{min(self.tokens / total, 1):4.0%}  {rate:,.0f} tokens/s  {left:,.0f} s left  {loss}"
        return Group(table, Text(line, style="cyan"))


def show(console, report, next_step: bool = True) -> None:
    """What the training left behind, and the next commands."""
    held = report.fit.heldout
    console.print(
        f"[bold]{report.sae.name}[/]: explained variance [bold]{held.explained_variance:.3f}[/], "
        f"L0 {held.l0:.1f}, dead {held.dead_share:.1%} on {held.rows:,} held-out rows "
        f"({report.fit.stopped}, {report.fit.seconds:,.0f} s)"
    )
    console.print(f"[dim]in[/] {report.sae.path}", soft_wrap=True)
    if next_step:
        console.print("[dim]next:[/] python main.py evaluate, python main.py index")


def as_json(report) -> None:
    """training.json, with the SAE's name and place."""
    print_json({"sae": report.sae.name, "path": report.sae.path, **report.sae.training})
