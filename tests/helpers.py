"""Documents made up for tests of the store, figures by their formulas, and commands in interpreters of their own.

Shapes: B rows, D d_model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lensae.core.manifest import ModelRecord
from lensae.core.records import CapturedDocument
from lensae.interpret.moments import Figures
from lensae.store.writer import SetWriter, header

ROOT = Path(__file__).resolve().parents[1]
HOOK = "blocks.1.hook_resid_post"
MODEL = ModelRecord(name="toy", path="", weights_sha256="w", tokenizer_sha256="t")


def document(number: int, rows: int, width: int = 16, hook: str = HOOK) -> CapturedDocument:
    """A document of `rows` two-character tokens; its activations depend on its number alone."""
    random = np.random.default_rng(number)
    text = "".join(f"{chr(97 + number % 26)}{i % 10}" for i in range(rows))
    position = np.arange(1, rows + 1)
    return CapturedDocument(
        text,
        text[: 2 * (rows // 3)] + f"|{number // 2}",
        ["red", "green", "blue"][number % 3],
        np.concatenate([[0], random.integers(2, 99, rows)]),
        random.integers(2, 99, rows),
        position,
        (position > rows // 3).astype(np.uint8),
        2 * (position - 1),
        2 * position,
        {hook: random.normal(size=(rows, width)).astype(np.float32)},
    )


def documents(count: int = 30, width: int = 16) -> list[CapturedDocument]:
    """Documents of different lengths, one of them empty."""
    return [document(n, 0 if n == 5 else 7 + n % 11, width) for n in range(count)]


def writer(folder: Path, spec: dict | None = None, dtype: str = "float16", width: int = 16, shard_rows: int = 64):
    """A writer for made-up documents."""
    about = header(MODEL, HOOK, width, dtype, {"lensae": "test"})
    return SetWriter(folder, about, spec or {"corpus": "made-up", "seed": 0}, "python main.py collect", shard_rows)


def write_set(folder: Path, found: list[CapturedDocument], **options) -> Path:
    """A finished set of `found`."""
    with writer(folder, **options) as open_writer:
        for one in found:
            open_writer.append(one)
        open_writer.finish()
    return folder


def like_one_shot(figures: dict, x, x_hat, fires) -> None:
    """The figures of a reconstruction are those of the formulas, over all rows at once (tensors of rows)."""
    a, b = x.double().numpy(), x_hat.double().numpy()
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    typical = norms[0] <= 4 * np.minimum(norms[0], 4 * np.median(norms[0])).mean()
    expected = {
        "rows": len(a),
        "massive_rows": (~typical).sum(),
        "mse": ((a - b) ** 2).mean(),
        "explained_variance_per_token": (1 - ((a - b) ** 2).sum(1) / ((a - a.mean(0)) ** 2).sum(1)).mean(),
        "l0": fires.sum(1).double().mean().item(),
        "dead_share": (~fires.any(0)).double().mean().item(),
        "dense_share": (fires.double().mean(0) > 0.1).double().mean().item(),
        "cosine": ((a * b).sum(1) / norms[0] / norms[1]).mean(),
        "shrinkage": (norms[1] / norms[0]).mean(),
        **ratios_of(a, b),
        **{f"{name}_typical": value for name, value in ratios_of(a[typical], b[typical]).items()},
    }
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-4), name


def ratios_of(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The figures that are ratios of sums over rows, of rows and their reconstructions."""
    return {
        "explained_variance": 1 - ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum(),
        "explained_variance_per_dim": (1 - ((a - b) ** 2).mean(0) / a.var(0)).mean(),
        "relative_bias": (b**2).sum() / (a * b).sum(),
    }


def figures_by_formula(x_BD: np.ndarray) -> Figures:
    """What survey measures, from all rows at once."""
    from scipy import stats

    x = x_BD.astype(np.float64)
    value_D = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))[::-1].clip(min=0)
    share_D = value_D / value_D.sum()
    p = share_D[share_D > 0]
    return Figures(
        len(x),
        np.abs(x).sum(),
        np.abs(x).max(),
        np.abs(x).mean(),
        np.sqrt((x**2).sum(1)).mean(),
        share_D[0],
        share_D[:10].sum(),
        np.nanmean(stats.kurtosis(x, axis=0)),
        np.abs(x).max() / 65504,
        np.exp(-(p * np.log(p)).sum()),
    )


def shell(*arguments: object, **environment: object) -> subprocess.CompletedProcess:
    """`python main.py ARGUMENTS` in an interpreter of its own (processes.py has faster ones)."""
    return subprocess.run(
        [sys.executable, "main.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **{k: str(v) for k, v in environment.items()}},
        timeout=120,
    )


def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid
