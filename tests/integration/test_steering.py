"""Steering: operations against their definitions, and their effect on a running model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lensae.core import registry
from lensae.core.errors import UserError
from lensae.core.records import GENERATED, PROMPT
from lensae.sae.base import SAE
from lensae.steering import measure, positions
from lensae.steering.edits import FeatureEdit, MatchedDirection, Replacement, reconstruct

HOOK = "blocks.4.hook_resid_post"
OPERATIONS = registry.names("steering.operations")


@pytest.fixture
def sae() -> SAE:
    """A ReLU SAE with orthonormal rows, so a feature can be set without moving the others."""
    torch.manual_seed(0)
    rows = torch.linalg.qr(torch.randn(64, 64)).Q[:20]
    tensors = {"W_enc": rows.T.clone(), "b_enc": torch.zeros(20), "W_dec": rows, "b_dec": torch.zeros(64)}
    return SAE({"architecture": "standard", "d_in": 64, "d_sae": 20}, tensors)


@pytest.fixture
def x() -> torch.Tensor:
    return 3 * torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))


def edit(sae, operation, value=7.0, where="all") -> FeatureEdit:
    return FeatureEdit(HOOK, sae, 4, value, operation, where)


ALL = torch.zeros(2, 5, dtype=torch.long)


def test_clamp_sets_the_feature_and_nothing_else(sae, x):
    changed = edit(sae, "clamp").apply(x, ALL)
    features = sae.encode(changed)
    fired = sae.encode(x)[..., 4] > 0
    assert 0 < fired.sum() < fired.numel()
    torch.testing.assert_close(features[..., 4][fired], torch.full((int(fired.sum()),), 7.0), rtol=1e-4, atol=1e-4)
    assert (features[..., 4][~fired] < 7).all(), "where it was off, it also has its negative pre-activation to make up"
    others = [f for f in range(20) if f != 4]
    torch.testing.assert_close(features[..., others], sae.encode(x)[..., others], rtol=1e-4, atol=1e-4)


def test_ablate_turns_the_feature_off(sae, x):
    assert (sae.encode(x)[..., 4] > 0).any()
    assert sae.encode(edit(sae, "ablate").apply(x, ALL))[..., 4].abs().max() < 1e-4


def test_add_moves_along_the_decoder_row(sae, x):
    torch.testing.assert_close(
        edit(sae, "add").apply(x, ALL) - x, (7 * sae.W_dec[4]).expand_as(x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_a_difference_of_reconstructions(operation, sae, x):
    """x + decode(f') - decode(f) with one feature changed: the SAE's own error does not act."""
    before = sae.encode(x)
    after = before.clone()
    after[..., 4] = {"clamp": 7.0, "ablate": 0.0}.get(operation, 0.0) if operation != "add" else before[..., 4] + 7.0
    torch.testing.assert_close(
        edit(sae, operation).apply(x, ALL), x + sae.decode(after) - sae.decode(before), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("where", "touched"), [("all", [0, 1]), ("generated", [1])])
def test_positions(where, touched, sae, x):
    origin = torch.tensor([[-1, 0, 0, 1, 1], [-1, -1, 0, 1, 1]])
    changed = (edit(sae, "add", where=where).apply(x, origin) != x).any(-1)
    assert (changed == torch.isin(origin, torch.tensor(touched))).all()
    moved = (MatchedDirection(edit(sae, "add", where=where), torch.ones(64)).apply(x, origin) != x).any(-1)
    assert (moved == changed).all()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_matched_direction_moves_each_token_as_far(operation, sae, x):
    change = edit(sae, operation)
    other = MatchedDirection(change, torch.randn(64))
    lengths = [(e.apply(x, ALL) - x).norm(dim=-1) for e in (change, other)]
    torch.testing.assert_close(*lengths, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(change.apply(x, ALL), other.apply(x, ALL))


def test_replacement_leaves_special_tokens(sae, x):
    origin = torch.tensor([[-1, PROMPT, PROMPT, GENERATED, GENERATED]] * 2)
    changed = Replacement(HOOK, reconstruct(sae)).apply(x, origin)
    torch.testing.assert_close(changed[:, 0], x[:, 0])
    torch.testing.assert_close(changed[:, 1:], sae.decode(sae.encode(x))[:, 1:])


def test_unknown_names():
    with pytest.raises(UserError, match="clmp"):
        registry.load("steering.operations", "clmp")
    with pytest.raises(UserError, match="choice of positions"):
        positions.check("some")


def test_kl_and_perplexity():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    found = measure.kl(p.log(), q.log())
    assert found[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3)) and found[1] == pytest.approx(
        0, abs=1e-7
    )
    ce = measure.cross_entropy(p.log(), torch.tensor([1, 0]))
    assert measure.perplexity(ce.tolist()) == pytest.approx((0.5 * 0.9) ** -0.5)
    assert math.isnan(measure.perplexity([])) and measure.recovered(1, 2, 5) == 0.75


@pytest.mark.parametrize("operation", OPERATIONS)
def test_cached_and_uncached_generation_agree_under_a_feature_edit(operation, sae, model_dir):
    from lensae import model as models
    from lensae.model.generate import Sampling, generate
    from lensae.model.score import next_token_logprobs

    model = models.load(models.resolve(str(model_dir("llama"))), [HOOK])
    prompt = model.text.encode("The tram was late again, and")
    change = edit(sae, operation, value=40.0)
    cached = generate(model, [prompt], Sampling(12, 0.0), [0], edits=[change])[0].new_ids
    ids = list(prompt)
    for _ in cached:
        logp = next_token_logprobs(model, [ids], [change], [len(prompt)])[0]
        ids.append(int(logp[-1].argmax()))
    assert ids[len(prompt) :] == cached


@pytest.fixture(scope="module")
def report(trained):
    from lensae.stages.features import open_lookup
    from lensae.stages.steer.options import SteerOptions
    from lensae.stages.steer.run import steer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSAE_STORE", str(trained))
        feature = open_lookup().index.ranked("density", 5)[3].feature
        return steer(SteerOptions(feature, (0.0, 1.0, 8.0), max_new_tokens=12, samples=2))


class TestStage:
    """The whole command's work on the small trained store."""

    def test_the_stronger_the_further(self, report):
        small, medium, large = report.steered
        assert report.baseline.kl == 0 < medium.kl < large.kl
        assert small.readback < medium.readback < large.readback

    def test_values_are_multiples_of_the_maximum(self, report):
        assert [run.value for run in report.steered] == [0.0, report.maximum, 8 * report.maximum]

    def test_controls_are_another_feature_and_a_direction(self, report):
        assert report.control_feature != report.options.feature
        assert [run.name.split()[1] for run in report.controls] == ["feature", "random"]

    def test_same_seed_same_texts(self, report, use_trained):
        from lensae.stages.steer.run import steer

        again = steer(report.options)
        assert again.baseline.texts == report.baseline.texts
        assert [r.texts for r in again.steered] == [r.texts for r in report.steered]

    def test_every_text_is_there(self, report):
        assert len(report.prompts) == len(report.baseline.texts) == 3 * 2

    def test_figures_are_numbers(self, report):
        for run in (report.baseline, *report.steered, *report.controls):
            assert np.isfinite([run.readback, run.rereading, run.kl, run.perplexity]).all()
