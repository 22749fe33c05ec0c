"""Trainers on held-out rows: the figures against plain dense formulas, and how often rows are read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import HOOK
from training_helpers import SMALL, TARGET_HOOK, made, write_target

from lensae.core import registry
from lensae.core.recipe import TrainRecipe
from lensae.sae import kernels
from lensae.sae.metrics.histogram import EDGES
from lensae.sae.train.loop import fit
from lensae.sae.train.optimizer import Adam
from lensae.sae.train.schedule import make_plan
from lensae.sae.train.validation import measure, validate
from lensae.stages.train.data import open_data

pytestmark = pytest.mark.usefixtures("one_thread")

D_MODEL, D_SAE, K, SCALE = 48, 1024, 16, 0.5


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, D_MODEL)).astype(np.float32) * 2 + 0.3


def trained(arch: str):
    """A trainer that has started on some rows and, where it has thresholds, was calibrated on others."""
    torch.manual_seed(0)
    recipe = TrainRecipe(arch=arch, k=K, l1=0.05, target_l0=K if arch != "topk" else None)
    trainer = registry.load("sae.architectures", arch).Trainer(D_MODEL, D_SAE, recipe, 10_000)
    trainer.initialise(torch.from_numpy(rows(400, 1)) * SCALE)
    trainer.eval()
    trainer.calibrate(lambda: [torch.from_numpy(rows(900, 2)) * SCALE])
    return trainer


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("arch", registry.names("sae.architectures"))
def test_figures_are_those_of_the_saved_sae_in_plain_formulas(arch, dtype, monkeypatch):
    """Dense products in float32 over all rows at once, whichever precision proposes the features."""
    monkeypatch.setattr(kernels, "screening_dtype", lambda _device: dtype)
    trainer, x = trained(arch), rows(700, 3)
    batches = [x[:300], x[300:]]
    figures = measure(trainer, iter(batches), SCALE)
    sae = trainer.sae(SCALE, {})
    features = sae.encode(torch.from_numpy(x))
    x_hat = sae.decode(features).double().numpy()
    spread = ((x.astype(np.float64) - x.mean(0, dtype=np.float64)) ** 2).sum()
    ours = figures.reconstruction
    assert ours.explained_variance == pytest.approx(1 - ((x - x_hat) ** 2).sum() / spread, abs=2e-4)
    assert ours.l0 == pytest.approx(float((features > 0).sum(1).float().mean()), rel=1e-3)
    density = (features > 0).float().mean(0)
    np.testing.assert_allclose(ours.density.numpy(), density.numpy(), atol=2.5 / len(x))
    assert ours.dead_share == pytest.approx(float((density == 0).float().mean()), abs=2 / D_SAE)
    counts, zeros = figures.activation_histogram
    expected = np.histogram(features[features > 0].numpy(), EDGES)[0]
    assert np.abs(counts - expected).sum() <= 0.005 * expected.sum()
    assert zeros + counts.sum() == features.numel()


@pytest.mark.parametrize("arch", registry.names("sae.architectures"))
def test_the_loss_is_that_of_the_whole_rows(arch, monkeypatch):
    """The mean over batches of different size of what the trainer itself gives in float32."""
    monkeypatch.setattr(kernels, "screening_dtype", lambda _device: torch.bfloat16)
    trainer, x = trained(arch), rows(700, 4)
    batches = [x[:100], x[100:]]
    _figures, loss = validate(trainer, batches, SCALE)
    with torch.no_grad():
        losses = [float(sum(trainer(torch.from_numpy(batch) * SCALE).losses.values())) for batch in batches]
    assert loss == pytest.approx(np.average(losses, weights=[100, 600]), rel=1e-3)
    assert trainer.product_dtype is None


def test_adam_is_that_of_pytorch():
    """Bit for bit, with a rate that changes and parameters that have no gradient yet."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in ((30, 7), (30,), (5,))]
    results = []
    for make in (Adam, lambda groups, lr, betas: torch.optim.Adam(groups, lr=lr, betas=betas, fused=True)):
        parameters = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = make([{"params": parameters[:1]}, {"params": parameters[1:]}], 1e-2, (0.7, 0.95))
        gradients = torch.Generator().manual_seed(1)
        for step in range(5):
            optimizer.param_groups[1]["lr"] = 1e-2 / (step + 1)
            optimizer.zero_grad()
            for parameter in parameters[: 3 if step else 2]:
                parameter.grad = torch.randn(parameter.shape, generator=gradients)
            optimizer.step()
        states = [value for parameter in parameters for value in optimizer.state[parameter].values()]
        results.append([*parameters, *states])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_the_first_batches_are_read_once():
    """The analytic start and the first epoch share them, and every batch is learnt from in its order."""
    x = rows(1000, 5)
    recipe = TrainRecipe(width=2, k=4, batch=100, epochs=2)
    plan = make_plan(recipe, len(x), D_MODEL)
    opened, read = [], []

    def epoch(number: int, first: int):
        opened.append((number, first))
        for batch in range(first, 10):
            read.append((number, batch))
            yield x[100 * batch : 100 * (batch + 1)]

    make = registry.load("sae.architectures", "topk").Trainer
    fit(lambda window: make(D_MODEL, plan.d_sae, recipe, window), epoch, lambda: [x[:200]], recipe, plan)
    assert opened == [(0, 0), (1, 0)]
    assert read == [(number, batch) for number in (0, 1) for batch in range(10)]


@pytest.mark.parametrize("wanted", [1, 7, 20, 1000])
def test_a_sample_has_every_so_many_th_row_of_the_documents(wanted, toy, store):
    """Of both sets for a transcoder, in batches; no more of them than about as many as are wanted."""
    write_target(store / "toy" / TARGET_HOOK, made(), 10)
    data = open_data(replace(SMALL, target=f"toy/{TARGET_HOOK}", heldout=0.2), f"toy/{HOOK}")
    whole = [np.concatenate(side) for side in zip(*data.heldout(64)(), strict=True)]
    sample = data.heldout_sample(3, wanted)
    assert all(len(x) == len(y) <= 3 for x, y in sample)
    kept = [np.concatenate(side) for side in zip(*sample, strict=True)]
    step = max(1, len(whole[0]) // wanted)
    if 16 * wanted >= len(whole[0]):
        for ours, rows_ND in zip(kept, whole, strict=True):
            np.testing.assert_array_equal(ours, rows_ND[::step])
    assert min(wanted, len(whole[0])) <= len(kept[0]) <= 2 * wanted + 25
