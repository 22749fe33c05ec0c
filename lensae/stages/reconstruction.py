"""The held-out rows of a set through an SAE and through what it is compared with.

Shapes: B rows of a batch, R held-out rows, D d_model, F features, G groups of documents that share a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from lensae.records import StoredDocument
from lensae.stages.progress import Progress
from lensae.store.reader import Selection, SetReader, group_of

# Bins of the activation histogram: steps of a factor 2^(1/8) from 2^-8 to 2^16.
EDGES = 2.0 ** np.linspace(-8, 16, 193)
BASELINE_ROWS = 100_000
BATCH_ROWS, FEATURES_AT_ONCE = 2048, 2**26


@dataclass(frozen=True)
class HeldOut:
    """The rows of an evaluation: which group each belongs to (R,), how many groups there are, and their mean (D,)."""

    reader: SetReader
    selection: Selection
    group_R: np.ndarray = field(repr=False)
    groups: int
    mean_D: np.ndarray = field(repr=False)

    def batches(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Activations (B, D) float32 and groups (B,), at most `rows` at a time."""
        first = 0
        for joined in self.reader.batches(self.selection, rows):
            for start in range(0, len(joined), rows):
                x_BD = joined[start : start + rows]
                yield x_BD, self.group_R[first : first + len(x_BD)]
                first += len(x_BD)


@dataclass(frozen=True)
class System:
    """Something that reconstructs rows: x (B, D) -> its reconstruction and, of an SAE, the features (B, F).

    Without features all `d_sae` of its numbers are taken to be used at every row.
    """

    name: str
    title: str
    d_sae: int
    run: Callable


@dataclass(frozen=True)
class Scored:
    """What came of one system: figures by name, sums (G, 5) of row_figures, and of an SAE its histograms."""

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


def hold_out(reader: SetReader, selection: Selection) -> HeldOut:
    """The groups and the mean of the rows of `selection`."""
    lengths = []

    def documents() -> Iterator[StoredDocument]:
        for one in reader.documents(selection):
            lengths.append(one.rows[1] - one.rows[0])
            yield one

    number = group_numbers(documents())
    total_D = np.zeros(reader.width)
    for batch in reader.batches(selection, BATCH_ROWS):
        total_D += batch.sum(0, dtype=np.float64)
    mean_D = total_D / max(selection.rows, 1)
    return HeldOut(reader, selection, np.repeat(number, lengths), int(number.max()) + 1, mean_D)


def score(held: HeldOut, system: System, device: str, progress: Progress) -> Scored:
    """Run every held-out row through `system`."""
    import torch

    from lensae.model.precision import fast_matmul
    from lensae.sae import evaluate as metrics

    total, counts = metrics.Accumulator(held.reader.width, system.d_sae), np.zeros(len(EDGES) - 1, np.int64)
    sums_GS, mean_D = torch.zeros(held.groups, 5, dtype=torch.float64), torch.from_numpy(held.mean_D)
    with torch.inference_mode(), fast_matmul():
        for batch, group_B in held.batches(batch_rows(system.d_sae)):
            x_BD = torch.from_numpy(batch)
            x_hat_BD, features_BF = system.run(x_BD.to(device))
            count_F, active_B, fired = _firing(features_BF, len(batch), system.d_sae)
            counts += np.histogram(np.clip(fired, EDGES[0], EDGES[-1]), EDGES)[0]
            total.add(x_BD, x_hat_BD, count_F)
            rows_BS = metrics.row_figures(x_BD, x_hat_BD.cpu(), active_B, mean_D)
            sums_GS.index_add_(0, torch.from_numpy(group_B), rows_BS)
            progress.advance(len(batch))
    result, sums = total.result(), sums_GS.numpy()
    figures = {name: value for name, value in vars(result).items() if name != "density"}
    figures["explained_variance_per_token"] = float(metrics.explained_variance_per_token(sums.sum(0)))
    zeros = result.rows * system.d_sae - int(counts.sum())
    return Scored(figures, sums, result.density.numpy(), counts, zeros)


def _firing(features_BF, rows: int, d_sae: int):
    """On how many rows each feature fires (F,), how many fire at each row (B,), and with what activations."""
    import torch

    if features_BF is None:
        return torch.full((d_sae,), rows), torch.full((rows,), d_sae), np.empty(0)
    fires_BF = features_BF > 0
    return fires_BF.sum(0), fires_BF.sum(1).cpu(), features_BF[fires_BF].cpu().numpy()


def batch_rows(d_sae: int) -> int:
    """Rows to encode at once, so that the features of a batch take 256 MB at most."""
    return max(1, min(BATCH_ROWS, FEATURES_AT_ONCE // max(d_sae, 1)))


def training_rows(reader: SetReader, selection: Selection, d_sae: int, progress: Progress):
    """The covariance over at most 100,000 training rows, of documents evenly chosen, and a sample (B, D) of them."""
    import torch

    from lensae.sae.baselines import Covariance

    chosen = selection.spread(max(1, round(selection.documents * BASELINE_ROWS / max(selection.rows, 1))))
    covariance, sample = Covariance(reader.width), []
    step = max(1, chosen.rows // batch_rows(d_sae))
    progress.start("fitting the baselines to training rows", chosen.rows, "rows")
    with torch.inference_mode():
        for batch in reader.batches(chosen, BATCH_ROWS):
            x_BD = torch.from_numpy(batch)
            covariance.add(x_BD)
            sample.append(x_BD[::step].clone())
            progress.advance(len(batch))
    return covariance, torch.cat(sample)


def of_sae(name: str, title: str, sae, device: str) -> System:
    """An SAE as a system."""
    placed = sae.to(device)

    def run(x_BD):
        features_BF = placed.encode(x_BD)
        return placed.decode(features_BF), features_BF

    return System(name, title, sae.d_sae, run)
