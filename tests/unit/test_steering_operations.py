"""Steering operations against their definitions."""

from __future__ import annotations

import math

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
def x() -> torch.Tensor:
    return 3 * torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))


def edit(sae, operation, value=7.0, where="all") -> FeatureEdit:
    return FeatureEdit(HOOK, sae, 4, value, operation, where)


ALL = torch.zeros(2, 5, dtype=torch.long)


@pytest.fixture
def sae(orthonormal_sae) -> SAE:
    return orthonormal_sae


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
