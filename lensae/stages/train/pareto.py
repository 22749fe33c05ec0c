"""The SAEs of a sweep as points of sparsity and reconstruction: their Pareto front, and the best to work with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lensae.core.recipe import TrainRecipe

ALIKE = 1.05  # L0s within this factor of one another are compared by explained variance alone
BEND = 0.02  # of the front's rise: what lies no farther above the line between its ends is no bend
RULES = {
    "alike": "the highest explained variance, as all have much the same L0",
    "straight": "the highest explained variance, as the front has no bend",
    "bend": "the bend of the front: farthest above the line from its first to its last, over log L0",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One SAE of a sweep, on the held-out rows; `front` when no other has less L0 and more explained variance.
    Compared is explained variance without massive rows (lensae.sae.metrics.reconstruction).

    `penalty` is the weight of the sparsity penalty where that decides how many features fire, else None;
    `ce_recovered` is that of lensae.stages.evaluate.losses, None where the model could not be run.
    """

    name: str
    arch: str
    d_sae: int
    recipe: TrainRecipe
    l0: float
    explained_variance_typical: float
    explained_variance: float
    mse: float
    dead_share: float
    seconds: float
    penalty: float | None = None
    ce_recovered: float | None = None
    front: bool = False


def mark_front(points: list[Point]) -> list[Point]:
    """The points by rising L0, with those marked that no other beats in both figures (the Pareto front)."""
    marked, best = [], -math.inf
    for point in sorted(points, key=lambda p: (p.l0, -p.explained_variance_typical)):
        marked.append(replace(point, front=point.explained_variance_typical > best))
        best = max(best, point.explained_variance_typical)
    return marked


def choose_winner(points: list[Point]) -> tuple[Point | None, str]:
    """The best point to work with, and by which rule it was chosen; None when there are no points."""
    front = [point for point in points if point.front]
    if not front:
        return None, ""
    highest = front[-1]
    if max(p.l0 for p in points) <= ALIKE * min(p.l0 for p in points):
        return highest, RULES["alike"]
    x = [math.log(max(point.l0, 1e-9)) for point in front]
    slope = (highest.explained_variance_typical - front[0].explained_variance_typical) / ((x[-1] - x[0]) or 1.0)
    lines = [front[0].explained_variance_typical + slope * (at - x[0]) for at in x]
    above = [point.explained_variance_typical - line for point, line in zip(front, lines, strict=True)]
    if max(above) <= BEND * (highest.explained_variance_typical - front[0].explained_variance_typical):
        return highest, RULES["straight"]
    return front[above.index(max(above))], RULES["bend"]
