"""The held-out rows of a set through an SAE and through what it is compared with.

Shapes: B rows of a batch, R held-out rows, D d_model, O width of what is predicted (D, but of a transcoder),
F features, G groups of documents that share a prompt, S sums kept of each,
N active pairs of a row and a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lensae.core.records import StoredDocument
from lensae.sae.metrics.histogram import counted
from lensae.stages.shared.progress import Progress
from lensae.store.pairs import Rows
from lensae.store.reader import group_of

if TYPE_CHECKING:
    import torch

    from lensae.sae.base import SAE
    from lensae.sae.metrics.reconstruction import RowMeans

    Active = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # row, feature and value of each active pair (N,)

BASELINE_ROWS = 100_000
SAMPLE_ROWS = 16_384
BATCH_ROWS, FEATURES_AT_ONCE = 2048, 2**24


@dataclass(frozen=True)
class HeldOutRows:
    """The rows of an evaluation: which group each belongs to (R,), how many groups there are, and what the rows that
    are to be predicted vary around."""

    rows: Rows
    group_R: np.ndarray = field(repr=False)
    groups: int
    means: RowMeans = field(repr=False)

    def batches(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """What is read (B, D), what is to be predicted (B, O), float32, and groups (B,), at most `rows` at a time."""
        first = 0
        for joined in self.rows.batches(rows):
            for start in range(0, len(joined[0]), rows):
                x_BD, y_BO = (part[start : start + rows] for part in joined)
                yield x_BD, y_BO, self.group_R[first : first + len(x_BD)]
                first += len(x_BD)


@dataclass(frozen=True)
class System:
    """Something that predicts rows: x (B, D) -> the prediction (B, O) and, of an SAE, the features that are active.

    Without these all `d_sae` of its numbers are taken to be used at every row; without `run` it is the rows that
    are to be predicted themselves.
    """

    name: str
    title: str
    d_sae: int
    run: Callable | None

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """The prediction (..., O) of activations (..., D)."""
        assert self.run is not None
        return self.run(x.flatten(0, -2))[0].unflatten(0, x.shape[:-1])


@dataclass(frozen=True)
class Scored:
    """What came of one system: figures by name, sums (G, 7) of row_figures, and of an SAE its histograms."""

    figures: dict
    sums_GS: np.ndarray = field(repr=False)
    density_F: np.ndarray = field(repr=False)
    activation_counts: np.ndarray = field(repr=False)
    zeros: int


def group_numbers(documents: Iterable[StoredDocument]) -> np.ndarray:
    """A number from 0 for each document, the same for those that share a prompt (int64)."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(group_of(one.prompt, one.text), len(numbers)) for one in documents]
    return np.array(found, np.int64)


def hold_out(rows: Rows) -> HeldOutRows:
    """The groups of the rows, and what those that are to be predicted vary around."""
    lengths = []

    def documents() -> Iterator[StoredDocument]:
        for one in rows.reader.documents(rows.selection):
            lengths.append(one.rows[1] - one.rows[0])
            yield one

    number = group_numbers(documents())
    return HeldOutRows(rows, np.repeat(number, lengths), int(number.max()) + 1, _means(rows))


def _means(rows: Rows) -> RowMeans:
    """Which rows are massive is decided by a sample of documents."""
    import torch

    from lensae.sae.metrics.reconstruction import RowMeans, massive_norm

    few = rows.spread(max(1, round(rows.selection.documents * SAMPLE_ROWS / max(rows.selection.rows, 1))))
    limit = massive_norm(torch.from_numpy(np.concatenate([y_BO for _x_BD, y_BO in few.batches(BATCH_ROWS)])))
    massive_O, total_O, massive = np.zeros(rows.width), np.zeros(rows.width), 0
    for _x_BD, y_BO in rows.batches(BATCH_ROWS):
        total_O += y_BO.sum(0, dtype=np.float64)
        massive_B = np.linalg.norm(y_BO, axis=-1) > limit
        massive_O += y_BO[massive_B].sum(0, dtype=np.float64)
        massive += int(massive_B.sum())
    count = rows.selection.rows
    mean_O, typical_O = total_O / max(count, 1), (total_O - massive_O) / max(count - massive, 1)
    return RowMeans(mean_D=torch.from_numpy(mean_O), typical_mean_D=torch.from_numpy(typical_O), massive_norm=limit)


def score(held: HeldOutRows, system: System, device: str, progress: Progress) -> Scored:
    """Run every held-out row through `system`."""
    import torch

    from lensae.model.precision import fast_matmul
    from lensae.sae.metrics import reconstruction as metrics

    total = metrics.Accumulator(held.rows.width, system.d_sae, held.means.massive_norm)
    sums_GS, counts = torch.zeros(held.groups, 7, dtype=torch.float64), counted(np.empty(0))
    with torch.inference_mode(), fast_matmul():
        for x, y, group_B in held.batches(batch_rows(system.d_sae)):
            y_BO = torch.from_numpy(y)
            y_hat_BO, active = system.run(torch.from_numpy(x).to(device)) if system.run else (y_BO, None)
            count_F, active_B, fired = _firing(active, len(x), system.d_sae)
            counts += counted(fired)
            total.add(y_BO, y_hat_BO, count_F)
            rows_BS = metrics.row_figures(y_BO, y_hat_BO.cpu(), active_B, held.means)
            sums_GS.index_add_(0, torch.from_numpy(group_B), rows_BS)
            progress.advance(len(x))
    result, sums = total.result(), sums_GS.numpy()
    figures = {name: value for name, value in vars(result).items() if name != "density"}
    figures["explained_variance_per_token"] = float(metrics.explained_variance_per_token(sums.sum(0)))
    zeros = result.rows * system.d_sae - int(counts.sum())
    return Scored(figures, sums, result.density.numpy(), counts, zeros)


def _firing(active: Active | None, rows: int, d_sae: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """On how many rows each feature fires (F,), how many fire at each row (B,), and with what activations."""
    import torch

    if active is None:
        return torch.full((d_sae,), rows), torch.full((rows,), d_sae), np.empty(0)
    row_N, feature_N, value_N = (part.cpu() for part in active)
    fires_N = value_N > 0
    count_F = torch.bincount(feature_N[fires_N], minlength=d_sae)
    return count_F, torch.bincount(row_N[fires_N], minlength=rows), value_N[fires_N].numpy()


def batch_rows(d_sae: int) -> int:
    """Rows to encode at once, so that the features of a batch take 340 MB at most."""
    return max(1, min(BATCH_ROWS, FEATURES_AT_ONCE // max(d_sae, 1)))


def training_rows(rows: Rows, d_sae: int, take: Callable, progress: Progress) -> tuple:
    """Hand batches of at most 100,000 training rows, of documents evenly chosen, to `take`, and give a sample of them:
    what is read (B, D) and what is to be predicted (B, O)."""
    import torch

    chosen = rows.spread(max(1, round(rows.selection.documents * BASELINE_ROWS / max(rows.selection.rows, 1))))
    sample = []
    step = max(1, chosen.selection.rows // batch_rows(d_sae))
    progress.start("fitting the baselines to training rows", chosen.selection.rows, "rows")
    with torch.inference_mode():
        for pair in chosen.batches(BATCH_ROWS):
            x_BD, y_BO = map(torch.from_numpy, pair)
            take(x_BD, y_BO)
            sample.append((x_BD[::step].clone(), y_BO[::step].clone()))
            progress.advance(len(x_BD))
    x, y = zip(*sample, strict=True)
    return torch.cat(x), torch.cat(y)


def of_sae(name: str, title: str, sae: SAE, device: str) -> System:
    """An SAE as a system."""
    placed = sae.to(device)

    def run(x_BD: torch.Tensor) -> tuple[torch.Tensor, Active]:
        active = placed.encode_sparse(x_BD)
        return placed.decode_sparse(len(x_BD), *active), active

    return System(name, title, sae.d_sae, run)
