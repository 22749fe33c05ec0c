"""What is done to weights beside the gradient's steps: dead features that begin again, and running means."""

from __future__ import annotations

import copy

import pytest
import torch

from lensae.core import registry
from lensae.core.recipe import TrainRecipe
from lensae.sae.train.resampling import SIZE, due, resample
from lensae.sae.train.run import TrainingRun
from lensae.sae.train.schedule import make_plan

D, F, ROWS = 16, 48, 512
ARCHS = registry.names("sae.architectures")


def rows(seed: int = 0) -> torch.Tensor:
    """Sums of a few of 24 directions, of norm about sqrt(D)."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(24, D, generator=torch.Generator().manual_seed(9))
    weights = torch.rand(ROWS, 24, generator=generator) * (torch.rand(ROWS, 24, generator=generator) < 0.15)
    return weights @ directions


def run(arch: str, **settings) -> TrainingRun:
    recipe = TrainRecipe(arch=arch, width=F / D, k=4, batch=64, **settings)
    if arch in ("relu", "tied-l1", "gated"):
        recipe = TrainRecipe(arch=arch, width=F / D, k=4, batch=64, target_l0=4, **settings)
    trainer = registry.load("sae.architectures", arch).Trainer
    made = TrainingRun(recipe, make_plan(recipe, ROWS, D), lambda window: trainer(D, F, recipe, window))
    made.start([rows()], (1.0,))
    return made


@pytest.mark.parametrize("arch", ARCHS)
def test_dead_features_begin_again(arch):
    """Features that were made dead fire again, point along rows' errors, and the optimizer has forgotten them."""
    one = run(arch)
    for _ in range(3):
        one.step([rows(1)])
    dead_R, trainer = torch.arange(5, 15), one.trainer
    with torch.no_grad():
        trainer.b_enc[dead_R] = -100.0
        trainer.dead.silent_F[:] = 0
        trainer.dead.silent_F[dead_R] = trainer.dead.window
    untouched = trainer.W_dec.detach()[15:].clone()
    torch.manual_seed(0)
    assert resample(trainer, one.optimizer, rows(1), rows(1)) == len(dead_R)
    assert torch.equal(trainer.W_dec[15:], untouched) and not trainer.dead.mask_F.any() and trainer.training
    torch.testing.assert_close(trainer.W_dec[dead_R].norm(dim=1), torch.ones(len(dead_R)))
    for kept in one.optimizer.state.values():
        if kept["exp_avg"].shape[:1] == (F,):
            assert not kept["exp_avg"][dead_R].any() and kept["exp_avg"][15:].any()
    if arch != "tied-l1":
        live = torch.ones(F, dtype=torch.bool)
        live[dead_R] = False
        mean = trainer.W_enc_FD[live].norm(dim=1).mean()
        torch.testing.assert_close(trainer.W_enc_FD[dead_R].norm(dim=1), (SIZE * mean).expand(len(dead_R)))
    pre_BR = (rows(1) - trainer.shift_D) @ trainer.W_enc_FD[dead_R].T + trainer.b_enc[dead_R]
    assert bool((pre_BR > 0).any(0).all())


def test_without_dead_features_nothing_changes():
    one = run("topk")
    one.step([rows(1)])
    before = copy.deepcopy(one.trainer.state_dict())
    assert resample(one.trainer, one.optimizer, rows(1), rows(1)) == 0
    assert all(torch.equal(value, before[name]) for name, value in one.trainer.state_dict().items())


def test_when_features_begin_again():
    recipe = TrainRecipe(width=3, k=4, batch=64, epochs=10, resample=3)
    plan = make_plan(recipe, ROWS, D)
    steps = [step for step in range(1, plan.steps + 1) if due(step, 3, plan, recipe.decay)]
    assert len(steps) == 3 and steps[-1] < plan.steps * (1 - recipe.decay)
    assert not any(due(step, 0, plan, recipe.decay) for step in range(1, plan.steps + 1))


def test_revived_features_are_used():
    """In a training that kills half of its features at once, resampling leaves fewer dead than there were."""
    shares = []
    for times in (0, 2):
        one = run("relu", epochs=40, resample=times)
        with torch.no_grad():
            one.trainer.b_enc[: F // 2] = -100.0
        for step in range(one.plan.steps):
            one.step([rows(step % 5)[:256]])
        shares.append(float(one.trainer.dead.mask_F.float().mean()))
    assert shares[0] >= 0.5 and shares[1] < 0.25


def test_the_mean_is_that_of_a_plain_loop():
    one = run("topk", average=0.95)
    means = {name: p.detach().double().clone() for name, p in one.trainer.named_parameters()}
    for step in range(1, 30):
        one.step([rows(step)])
        weight = 1 - min(0.95, (1 + step) / (10 + step))
        for name, p in one.trainer.named_parameters():
            means[name] += weight * (p.detach().double() - means[name])
    for name, mean in means.items():
        torch.testing.assert_close(one.average.mean[name].double(), mean, rtol=1e-4, atol=1e-5)


def test_the_mean_is_what_is_measured_and_no_more():
    one = run("topk", average=0.9)
    for step in range(20):
        one.step([rows(step)])
    own = copy.deepcopy(one.trainer.state_dict())
    with one.for_use():
        torch.testing.assert_close(one.trainer.W_dec.norm(dim=1), torch.ones(F))
        assert torch.equal(one.trainer.b_dec, one.average.mean["b_dec"])
        assert not torch.equal(one.trainer.W_dec, own["W_dec"])
    assert all(torch.equal(value, own[name]) for name, value in one.trainer.state_dict().items())
