"""survey: the streamed figures against direct formulas, and the rule that chooses a hook."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import figures_by_formula
from scipy import stats

from lensae.core.errors import LensaeError
from lensae.interpret.moments import Figures, Moments
from lensae.stages.survey import Block, choose, middle_third

PNG = b"\x89PNG\r\n\x1a\n"


def figures_of(x_BD: np.ndarray, sizes: list[int] | None = None) -> Figures:
    moments = Moments(x_BD.shape[1])
    for chunk in np.split(x_BD, np.cumsum(sizes or [])):
        moments.add(chunk)
    return moments.result()


def cloud(rows: int = 700, width: int = 24, seed: int = 0) -> np.ndarray:
    """Correlated, heavy-tailed dimensions of different means and sizes, a few of them far from zero."""
    random = np.random.default_rng(seed)
    x = random.standard_t(8, (rows, width)) @ random.normal(size=(width, width))
    return (x * np.linspace(0.1, 5, width) + np.where(np.arange(width) % 7 == 3, 400, 1)).astype(np.float32)


@pytest.mark.parametrize(
    "sizes", [[], [1], [1, 1, 1, 40], [0, 650, 0], [100] * 6, [7] * 99], ids=lambda s: f"{len(s)} cuts"
)
def test_streamed_figures_are_the_direct_ones(sizes):
    x = cloud()
    found, expected = vars(figures_of(x, sizes)), vars(figures_by_formula(x))
    assert abs(expected["kurtosis"]) > 0.01 and expected["top1_share"] < expected["top10_share"] < 0.999
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


def test_chunks_that_differ_from_one_another():
    """Batches of their own mean, size and skew: what combining them must get right."""
    random = np.random.default_rng(1)
    x = np.concatenate([random.exponential(scale, (rows, 12)) + scale for scale, rows in ((1, 50), (30, 9), (5, 200))])
    found, expected = vars(figures_of(x, [50, 9])), vars(figures_by_formula(x))
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_large_mean_costs_no_digits():
    """Sums of raw fourth powers would be all rounding here: 1e7^4 against a deviation of 1."""
    x = np.random.default_rng(2).laplace(size=(4000, 6))
    moved = figures_of(x + 1e7, [333] * 11)
    assert moved.kurtosis == pytest.approx(figures_of(x).kurtosis, rel=1e-5)
    assert moved.effective_rank == pytest.approx(figures_of(x).effective_rank, rel=1e-6)


def test_an_isotropic_cloud_has_full_effective_rank():
    found = figures_of(np.random.default_rng(0).standard_normal((50_000, 32)), [5000] * 9)
    assert 31.9 < found.effective_rank <= 32
    assert found.top1_share == pytest.approx(1 / 32, rel=0.1) and found.top10_share == pytest.approx(10 / 32, rel=0.1)
    assert found.kurtosis == pytest.approx(0, abs=0.05)


def test_a_line_has_effective_rank_one():
    random = np.random.default_rng(0)
    line = np.outer(random.standard_normal(500), random.standard_normal(16)) + 3
    found = figures_of(line, [100] * 4)
    assert found.effective_rank == pytest.approx(1, abs=1e-6) and found.top1_share == pytest.approx(1)
    two = np.zeros((4, 5))
    two[[0, 1], 0], two[[2, 3], 3] = (1, -1), (1, -1)
    assert figures_of(two).effective_rank == pytest.approx(2), "two directions of equal variance"


def test_what_does_not_vary():
    still = figures_of(np.full((20, 4), 2.5), [7])
    assert (still.effective_rank, still.top1_share, still.kurtosis) == (0, 0, 0) and still.norm_mean == 5
    half = cloud(100, 6).astype(np.float64)
    half[:, 2] = 7.1
    assert figures_of(half, [30]).kurtosis == pytest.approx(np.mean(stats.kurtosis(half[:, [0, 1, 3, 4, 5]])))
    with pytest.raises(LensaeError, match="no activations"):
        Moments(3).result()


def made_up(process: list[float], risks: dict[int, float] | None = None) -> tuple[Block, ...]:
    base = Figures(100, 1.0, 20.0, 0.5, 3.0, 0.1, 0.4, 0.0, 0.01, 0.0)
    figures = [
        replace(base, effective_rank=rank, float16_risk=(risks or {}).get(n, 0.01)) for n, rank in enumerate(process)
    ]
    return tuple(Block(n, f"blocks.{n}.hook_resid_post", f) for n, f in enumerate(figures))


def test_the_middle_third():
    thirds = {n: list(middle_third(n)) for n in (1, 2, 3, 4, 8, 12)}
    assert thirds == {1: [0], 2: [0, 1], 3: [1], 4: [1, 2], 8: [2, 3, 4, 5], 12: [4, 5, 6, 7]}
    assert (middle_third(30)[0], middle_third(30)[-1]) == (10, 19)


def test_the_highest_effective_rank_of_the_middle_is_chosen():
    choice = choose(made_up([99, 98, 97, 5, 7, 9, 90, 91, 92]), 64)
    assert (choice.block, choice.hook, choice.dtype) == (5, "blocks.5.hook_resid_post", "float16")
    assert "blocks 3 to 5" in choice.why and "9.0 of 64" in choice.why and "float32" not in choice.why


def test_a_block_that_float16_hardly_holds_is_passed_over():
    process = [99, 98, 97, 5, 7, 9, 90, 91, 92]
    choice = choose(made_up(process, {5: 0.5}), 64)
    assert choice.block == 4 and choice.dtype == "float16" and "of the 2 whose largest value" in choice.why
    assert choose(made_up(process, {5: 0.499}), 64).block == 5
    assert choose(made_up(process, {0: 3.0, 8: 3.0}), 64).block == 5, "blocks outside the middle third do not matter"


def test_when_float16_holds_none_of_them_float32_is_the_advice():
    choice = choose(made_up([99, 98, 97, 5, 7, 9, 90, 91, 92], {3: 0.5, 4: 1.5, 5: 20.0}), 64)
    assert choice.block == 5 and choice.dtype == "float32"
    assert "every block there" in choice.why and "--dtype float32" in choice.why
