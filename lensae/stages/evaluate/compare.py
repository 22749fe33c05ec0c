"""What an evaluation measures side by side: the SAE, its baselines, and the rows as they are.

Shapes: B rows, D d_model, O width of what is predicted, K principal components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lensae.stages.evaluate import reconstruction
from lensae.stages.evaluate.reconstruction import HeldOutRows, Scored, System, of_sae, training_rows
from lensae.stages.evaluate.report import SEED
from lensae.stages.shared.progress import Progress
from lensae.store.pairs import Rows

if TYPE_CHECKING:
    from lensae.sae.base import SAE


@dataclass(frozen=True)
class Compared:
    """The systems, the SAE first, with their scores; the training rows used; decoder rows' largest cosines."""

    systems: list[System]
    scores: list[Scored]
    baseline_rows: int
    nearest_cosine: dict[str, np.ndarray] = field(repr=False)


def compare(sae: SAE, held: HeldOutRows, training: Rows, device: str, progress: Progress) -> Compared:
    """The SAE beside what is fitted to the training rows at its L0, each over all held-out rows.

    An SAE is compared with principal components and with a random SAE; a transcoder with linear maps and with a random
    transcoder.
    """
    import torch

    from lensae.model.precision import fast_matmul

    rows = held.rows.selection.rows
    progress.start("reconstructing held-out rows", rows, "rows")
    systems = [of_sae("sae", "transcoder" if held.rows.target else "SAE", sae, device)]
    scores, used, drawn = [reconstruction.score(held, systems[0], device, progress)], 0, None
    with torch.inference_mode(), fast_matmul():
        if training.selection.documents:
            fit = _beside_a_transcoder if training.target else _beside_an_sae
            baselines, drawn, used = fit(sae, scores[0].figures["l0"], training, device, progress)
            systems += baselines
        cosines = {"sae": _nearest(sae, device)} | ({"random": _nearest(drawn, device)} if drawn else {})
    width = held.rows.width
    systems.append(System("raw", "raw target" if held.rows.target else "raw stream", width, None))
    progress.start("reconstructing them with the baselines", rows * len(systems[1:]), "rows")
    scores += [reconstruction.score(held, system, device, progress) for system in systems[1:]]
    return Compared(systems, scores, used, cosines)


def _nearest(sae: SAE, device: str) -> np.ndarray:
    from lensae.sae.metrics.reconstruction import nearest_cosine

    return nearest_cosine(sae.W_dec.to(device)).cpu().numpy()


def _beside_an_sae(sae: SAE, l0: float, training: Rows, device: str, progress: Progress) -> tuple:
    """The baselines, the one whose decoder rows are random directions, and the training rows used."""
    from lensae.sae.metrics.baselines import Covariance, random_sae

    covariance = Covariance(training.width)
    x_BD, _same = training_rows(training, sae.d_sae, lambda x, _y: covariance.add(x), progress)
    pca, drawn = covariance.pca(round(l0)), random_sae(sae, l0, x_BD, SEED)
    systems = [_plain("pca", "PCA", len(pca.basis_KD), pca.to(device)), of_sae("random", "random SAE", drawn, device)]
    return systems, drawn, covariance.n


def _beside_a_transcoder(sae: SAE, l0: float, training: Rows, device: str, progress: Progress) -> tuple:
    """The baselines, None since no decoder rows are random directions, and the training rows used."""
    from lensae.sae.metrics.baselines import random_transcoder
    from lensae.sae.metrics.linear_maps import JointMoments

    moments = JointMoments(sae.d_in, sae.d_out)
    x_BD, y_BO = training_rows(training, sae.d_sae, moments.add, progress)
    widest = min(sae.d_in, sae.d_out)
    rank = min(round(l0), widest)
    systems = [
        _plain("linear_rank_l0", f"linear, rank {rank}", rank, moments.linear_map(rank).to(device)),
        _plain("linear", "linear", widest, moments.linear_map().to(device)),
        of_sae("random", "random", random_transcoder(sae, l0, x_BD, y_BO, SEED), device),
    ]
    return systems, None, moments.n


def _plain(name: str, title: str, numbers: int, function: Callable) -> System:
    """A reconstruction without features."""
    return System(name, title, numbers, lambda x: (function(x), None))
