"""The distribution of the activations at one hook: moments and spectrum, streamed.

Shapes: B rows (tokens), D the width of the hook.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lensae.core.errors import LensaeError

FLOAT16_MAX = float(np.finfo(np.float16).max)  # 65504


@dataclass(frozen=True)
class Figures:
    """Figures over all rows seen, in the units of the activations where they have one.

    abs_sum, abs_max, abs_mean    of |x| over every entry
    norm_mean         mean Euclidean norm of a row
    top1_share, top10_share    share of the total variance in the first 1 and 10 principal components
    kurtosis          mean over dimensions of the excess kurtosis (0 for a normal distribution)
    float16_risk      abs_max / 65504, the largest float16: from 1 on the largest value does not fit
    effective_rank    exp of the entropy of the covariance's eigenvalues over their sum (Roy and Vetterli 2007)

    Where nothing varies, shares and effective rank are 0; dimensions that do not vary have no kurtosis.
    """

    rows: int
    abs_sum: float
    abs_max: float
    abs_mean: float
    norm_mean: float
    top1_share: float
    top10_share: float
    kurtosis: float
    float16_risk: float
    effective_rank: float


class Moments:
    """Sums in float64 over a stream of batches.

    The mean, the covariance and the third and fourth central moments of the rows so far are combined with those
    of each batch (Pébay 2008, SAND2008-6212): sums of raw powers lose every digit where a mean is large.
    """

    def __init__(self, width: int):
        self.rows = 0
        self.abs_sum = self.abs_max = self.norm_sum = 0.0
        self.mean_D = np.zeros(width)
        self.second_DD = np.zeros((width, width))
        self.third_D = np.zeros(width)
        self.fourth_D = np.zeros(width)

    def add(self, x_BD: np.ndarray) -> None:
        """Add one batch."""
        if not len(x_BD):
            return
        x = np.asarray(x_BD, np.float64)
        magnitude = np.abs(x)
        self.abs_sum += float(magnitude.sum())
        self.abs_max = max(self.abs_max, float(magnitude.max()))
        self.norm_sum += float(np.linalg.norm(x, axis=1).sum())
        mean_D = x.mean(0)
        x = x - mean_D  # not in place: x may be the caller's own array
        square = x * x
        self._combine(len(x), mean_D, x.T @ x, (square * x).sum(0), (square * square).sum(0))

    def _combine(
        self, b: int, mean_D: np.ndarray, second_DD: np.ndarray, third_D: np.ndarray, fourth_D: np.ndarray
    ) -> None:
        """Pébay's equations for a (the rows so far) and b (this batch); the fourth moment needs the old third,
        and both need the old second."""
        a, n = self.rows, self.rows + b
        d = mean_D - self.mean_D
        variance_a, variance_b = self.second_DD.diagonal(), second_DD.diagonal()
        self.fourth_D += fourth_D + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
        self.fourth_D += 6 * d**2 * (a * a * variance_b + b * b * variance_a) / n**2
        self.fourth_D += 4 * d * (a * third_D - b * self.third_D) / n
        self.third_D += third_D + d**3 * (a * b * (a - b) / n**2) + 3 * d * (a * variance_b - b * variance_a) / n
        self.second_DD += second_DD + np.outer(d, d) * (a * b / n)
        self.mean_D += d * (b / n)
        self.rows = n

    def result(self) -> Figures:
        """The figures over all rows so far; raises LensaeError when no row was added."""
        if not self.rows:
            raise LensaeError("there are no activations to describe")
        share_D = self._variance_shares()
        return Figures(
            self.rows,
            self.abs_sum,
            self.abs_max,
            self.abs_sum / (self.rows * len(self.mean_D)),
            self.norm_sum / self.rows,
            float(share_D[0]),
            float(share_D[:10].sum()),
            self._kurtosis(),
            self.abs_max / FLOAT16_MAX,
            effective_rank(share_D),
        )

    def _variance_shares(self) -> np.ndarray:
        """The covariance's eigenvalues (D,) over their sum, falling."""
        value_D = np.linalg.eigvalsh(self.second_DD / self.rows)[::-1].clip(min=0)
        total = value_D.sum()
        return value_D / total if total > 0 else value_D

    def _kurtosis(self) -> float:
        variance_D = self.second_DD.diagonal() / self.rows
        varies = variance_D > (1e-12 * self.mean_D) ** 2  # more than rounding; one step of a float32 is 1e-7
        if not varies.any():
            return 0.0
        return float(np.mean(self.fourth_D[varies] / self.rows / variance_D[varies] ** 2) - 3)


def effective_rank(share_D: np.ndarray) -> float:
    """exp(-sum p log p) of shares that sum to 1, between 1 and D (Roy and Vetterli 2007); 0 when all are 0."""
    p = share_D[share_D > 0]
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0
