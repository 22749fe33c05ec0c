"""SAEs of any origin on the same held-out documents, and intervals over seeds and documents.

Shapes: G groups of held-out documents, S sums kept of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contestants.trains_rows import Rows

from lensae.sae.formats import saelens as checkpoint
from lensae.sae.metrics import reconstruction as evaluate
from lensae.stages.evaluate import losses, reconstruction
from lensae.stages.shared.models import load_model_of
from lensae.stages.shared.progress import Silent
from lensae.store import pairs

RESAMPLES, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Judged:
    """One SAE: its figures, and of each group the sums that explained variance and recovered loss are made of."""

    figures: dict
    rows_GS: np.ndarray
    losses_GS: np.ndarray


def judge(folders: dict[tuple, Path], rows: Rows, tokens: int) -> dict[tuple, Judged]:
    """Every SAE of `folders` on the held-out documents, the losses on about `tokens` tokens of them."""
    saes = {key: checkpoint.load(folder) for key, folder in folders.items()}
    with rows.reader() as (reader, heldout):
        held = reconstruction.hold_out(pairs.Rows(reader, heldout))
        systems = {key: reconstruction.of_sae(str(key), "", sae, "cpu") for key, sae in saes.items()}
        scored = {key: reconstruction.score(held, system, "cpu", Silent()) for key, system in systems.items()}
        model = load_model_of(reader.entry, [reader.entry.manifest["hook"]])
        chosen = heldout.spread(round(heldout.documents * tokens / heldout.rows))
        runs = {str(key): system.predict for key, system in systems.items()}
        spliced = losses.measure(model, reader, chosen, runs, Silent())
    return {key: Judged(scored[key].figures, scored[key].sums_GS, spliced.of(str(key))) for key in saes}


STATISTICS: dict[str, tuple[Callable, str]] = {
    "explained_variance": (evaluate.explained_variance, "rows_GS"),
    "ce_recovered": (losses.ce_recovered, "losses_GS"),
}


def mean(seeds: list[Judged], name: str) -> float:
    """A figure, as the mean over seeds."""
    if name not in STATISTICS:
        return float(np.mean([one.figures[name] for one in seeds]))
    statistic, sums = STATISTICS[name]
    return float(np.mean([statistic(getattr(one, sums).sum(0)) for one in seeds]))


def interval(seeds: list[Judged], name: str, against: list[Judged] | None = None) -> tuple[float, float]:
    """The bootstrap interval of a mean over seeds, or of its difference to that of `against`."""
    random = np.random.default_rng(0)
    groups = len(getattr(seeds[0], STATISTICS[name][1]))
    found = []
    for _ in range(RESAMPLES):
        times_G = np.bincount(random.integers(0, groups, groups), minlength=groups)
        found.append(_drawn(seeds, name, times_G, random) - (_drawn(against, name, times_G, random) if against else 0))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _drawn(seeds: list[Judged], name: str, times_G: np.ndarray, random: np.random.Generator) -> float:
    statistic, sums = STATISTICS[name]
    drawn = random.integers(0, len(seeds), len(seeds))
    return float(np.mean([statistic(times_G @ getattr(seeds[i], sums)) for i in drawn]))
