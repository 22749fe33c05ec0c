"""Rows with a known answer: sums of a few of many unit vectors, and the real training loop on them.

Shapes: F vectors of the dictionary, B rows, D d_model, K active vectors of a row.
"""

from __future__ import annotations

import numpy as np
import torch

from lensae.core import registry
from lensae.core.recipe import TrainRecipe
from lensae.sae import functional
from lensae.sae.train.loop import fit
from lensae.sae.train.schedule import make_plan


def planted(number: int, seed: int, features: int = 256, d_model: int = 64, active: int = 8):
    """`number` rows (B, D) as a NumPy array, the dictionary (F, D), and its weights in each row (B, F)."""
    generator = torch.Generator().manual_seed(seed)
    dictionary_FD = functional.unit_rows(torch.randn(features, d_model, generator=torch.Generator().manual_seed(9)))
    chosen_BK = torch.rand(number, features, generator=generator).topk(active, dim=1).indices
    strength_BK = 1 + torch.rand(number, active, generator=generator)
    weights_BF = torch.zeros(number, features).scatter_(1, chosen_BK, strength_BK)
    return (weights_BF @ dictionary_FD).numpy(), dictionary_FD, weights_BF


def train_on_rows(recipe: TrainRecipe, x, heldout, d_out: int | None = None):
    """The fit of an SAE by the real loop; x and heldout are arrays, or (input, target) pairs of them."""
    rows = x[0] if isinstance(x, tuple) else x
    plan = make_plan(recipe, len(rows), rows.shape[1])
    module = registry.load("sae.architectures", recipe.arch)
    random = np.random.default_rng(0)

    def epoch(_number: int, _first: int):
        for indices in np.array_split(random.permutation(len(rows)), len(rows) // plan.batch):
            yield tuple(array[indices] for array in x) if isinstance(x, tuple) else x[indices]

    return fit(
        lambda window: module.Trainer(rows.shape[1], plan.d_sae, recipe, window, d_out),
        epoch,
        lambda: [heldout],
        recipe,
        plan,
    )
