"""Sparse autoencoders: arithmetic against references, files against the layout, training against planted truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_dictionary import planted

from lensae.core import registry
from lensae.core.errors import DamagedError, LensaeError, UserError
from lensae.core.recipe import TrainRecipe, load_train
from lensae.sae import functional
from lensae.sae.architectures._base import DeadFeatures
from lensae.sae.base import ENCODERS, SAE
from lensae.sae.formats import saelens as checkpoint
from lensae.sae.metrics.reconstruction import Accumulator
from lensae.sae.train.loop import Callbacks, fit
from lensae.sae.train.schedule import learning_rate, make_plan
from lensae.sae.train.validation import validate


def trainer_of(arch: str, d_model: int = 12, d_sae: int = 30, dead_window: int = 10_000, **recipe):
    torch.manual_seed(0)
    settings = TrainRecipe(arch=arch, **{"k": 4, "l1": 0.05, **recipe})
    return registry.load("sae.architectures", arch).Trainer(d_model, d_sae, settings, dead_window)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_topk_against_sorting(seed, k):
    pre = np.random.default_rng(seed).normal(size=(5, 9)).astype(np.float32)
    found = functional.topk(torch.from_numpy(pre), k).numpy()
    for row, values in zip(pre, found, strict=True):
        keep = np.argsort(-row)[:k]
        expected = np.zeros(9, np.float32)
        expected[keep] = np.maximum(row[keep], 0)
        np.testing.assert_array_equal(values, expected)


def test_geometric_median_minimises_distances():
    torch.manual_seed(0)
    x = torch.randn(200, 5)
    x[:20] += 50  # far away: the mean follows them, the median hardly does
    point = functional.geometric_median(x)

    def total(p):
        return (x - p).norm(dim=1).sum()

    assert all(total(point) <= total(point + 0.05 * torch.randn(5)) for _ in range(50))
    assert point.norm() < 1 < x.mean(0).norm()


def test_figures_against_their_formulas():
    torch.manual_seed(0)
    x, x_hat = torch.randn(300, 6) * torch.arange(1.0, 7) + 5, torch.randn(300, 6)
    features = torch.relu(torch.randn(300, 8) - 1)
    features[:, 3] = 0
    total = Accumulator(6, 8, math.inf)
    for part in torch.arange(300).split(77):
        total.add(x[part], x_hat[part], (features[part] > 0).sum(0))
    found = total.result()
    error = (x - x_hat).square().sum(1).mean()
    assert found.explained_variance == pytest.approx(
        float(1 - error / (x.square().sum(1).mean() - x.mean(0).square().sum())), rel=1e-5
    )
    per_dim = 1 - (x - x_hat).square().mean(0) / x.var(0, unbiased=False)
    assert found.explained_variance_per_dim == pytest.approx(float(per_dim.mean()), rel=1e-5)
    assert found.l0 == pytest.approx(float((features > 0).sum(1).float().mean()))
    assert found.dead_share == pytest.approx(1 / 8)
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(x, x_hat).mean()), rel=1e-5)
    assert found.shrinkage == pytest.approx(float((x_hat.norm(dim=1) / x.norm(dim=1)).mean()), rel=1e-5)
    torch.testing.assert_close(found.density, (features > 0).float().mean(0))


def test_dead_features_are_counted_in_tokens():
    dead = DeadFeatures(3, window=25)
    fires = torch.tensor([[1.0, 0.0, 0.0]] * 10)
    for _ in range(3):
        dead.update((fires > 0).sum(0), 10)
    assert dead.mask_F.tolist() == [False, True, True]
    dead.update(torch.tensor([0, 1, 0]), 1)
    assert dead.silent_F.tolist() == [1, 0, 31]


def test_jumprelu_is_run():
    tensors = {"W_enc": torch.eye(3), "b_enc": torch.zeros(3), "W_dec": torch.eye(3), "b_dec": torch.zeros(3)}
    sae = SAE(
        {"architecture": "jumprelu", "d_in": 3, "d_sae": 3}, tensors | {"threshold": torch.tensor([0.0, 1.0, 2.0])}
    )
    assert sae.encode(torch.tensor([[1.0, 1.0, 2.5]])).tolist() == [[1.0, 0.0, 2.5]]
    shifted = SAE({**sae.cfg, "apply_b_dec_to_input": False}, sae.tensors | {"b_dec": torch.ones(3)})
    assert shifted.encode(torch.tensor([[1.0, 1.0, 2.5]])).tolist() == [[1.0, 0.0, 2.5]]


def test_files_that_do_not_fit(tmp_path):
    checkpoint.save(tmp_path, trainer_of("topk").sae(1.0, {}))
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    for change, error in (
        ({"d_sae": 31}, DamagedError),
        ({"architecture": "crosscoder"}, UserError),
        ({"normalize_activations": "layer_norm"}, UserError),
    ):
        (tmp_path / "cfg.json").write_text(json.dumps(cfg | change))
        with pytest.raises(error):
            checkpoint.load(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    (tmp_path / "sae_weights.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DamagedError):
        checkpoint.load(tmp_path)


def small_fit(recipe: TrainRecipe, rows: np.ndarray, callbacks: Callbacks | None = None):
    plan = make_plan(recipe, len(rows), rows.shape[1])
    arch = registry.load("sae.architectures", recipe.arch)
    return fit(
        lambda window: arch.Trainer(rows.shape[1], plan.d_sae, recipe, window),
        lambda epoch, first: iter(np.array_split(rows, max(1, len(rows) // plan.batch))[first:]),
        lambda: [rows[:200]],
        recipe,
        plan,
        callbacks,
    )


def test_best_weights_are_kept_and_training_stops_early():
    """A rate that overshoots: later epochs are worse, and what is kept is the best of them."""
    x, *_ = planted(2_000, 3)
    recipe = TrainRecipe(width=1, k=2, epochs=30, batch=128, lr=0.5, patience=2, decay=0, warmup=0)
    result = small_fit(recipe, x)
    losses = [line.heldout_loss for line in result.history if line.l0 > 0]
    assert len(result.history) < 30 and "no better" in result.stopped
    _figures, kept = validate(result.trainer, [x[:200]], *result.scales)
    assert kept == pytest.approx(min(losses), rel=1e-4)


def test_activations_that_are_not_finite():
    x, *_ = planted(1_000, 3)
    x[500, 3] = math.nan
    with pytest.raises(LensaeError, match="not finite"):
        small_fit(TrainRecipe(width=1, k=2, epochs=2, batch=128), x)


def test_learning_rate_schedule():
    recipe = TrainRecipe(lr=1.0, warmup=0.1, decay=0.2, batch=10, epochs=10)
    plan = make_plan(recipe, 100, 8)
    rates = [learning_rate(step, plan, recipe) for step in range(plan.steps)]
    assert plan.steps == 100 and rates[0] == pytest.approx(0.1) and rates[50] == 1.0
    assert rates[-1] == pytest.approx(0.05) and max(rates) == 1.0


def test_tokens_bound_the_training():
    plan = make_plan(TrainRecipe(tokens=5_000, batch=100), 1_200, 8)
    assert plan.steps == 50 and plan.epochs == 5


@pytest.mark.parametrize(
    "bad",
    [
        {"k": 0},
        {"width": -1},
        {"lr": math.nan},
        {"lr": 0},
        {"l1": math.inf},
        {"heldout": 1},
        {"epochs": 1, "tokens": 1},
    ],
)
def test_recipes_refuse_what_cannot_work(bad):
    with pytest.raises(UserError):
        TrainRecipe(**bad)


def test_recipe_files(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[train]\narch = "tied-l1"\nl1 = 0.2\nwarmup = 0.1\n')
    recipe = load_train(path, l1=0.3, k=None)
    assert (recipe.arch, recipe.l1, recipe.warmup, recipe.k) == ("tied-l1", 0.3, 0.1, None)
    for text, message in (
        ("[train]\nwdith = 4\n", "wdith"),
        ("[train]\nk = 'many'\n", "cannot be"),
        ("[train]\nnorm_limit = -1\n", "norm_limit cannot be -1"),
        ("[train]\nl0_penalty = 'l1'\n", "l0_penalty cannot be 'l1'"),
        ("[other]\n", "no .train. table"),
        ("not toml", "not TOML"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_train(path)


def test_features_scaled_by_decoder_norms_are_folded(tmp_path):
    """SAELens trains TopK so: pre-activations times the decoder rows' norms are chosen from, and decoded over them."""
    torch.manual_seed(2)
    W_enc, W_dec, b_enc, b_dec = torch.randn(8, 30), torch.randn(30, 8), torch.randn(30), torch.randn(8)
    cfg = checkpoint.config("topk", 8, 30, {}, k=4, rescale_acts_by_decoder_norm=True)
    tensors = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    checkpoint.save(tmp_path / "sae", SAE(cfg, tensors))
    sae, x, norm = checkpoint.load(tmp_path / "sae"), torch.randn(50, 8), W_dec.norm(dim=1)
    expected = functional.topk(((x - b_dec) @ W_enc + b_enc) * norm, 4)
    plain = functional.topk((x - b_dec) @ W_enc + b_enc, 4)
    assert not torch.equal(expected > 0, plain > 0)
    torch.testing.assert_close(sae.encode(x), expected)
    torch.testing.assert_close(sae.decode(sae.encode(x)), (expected / norm) @ W_dec + b_dec)
    assert sae.cfg["rescale_acts_by_decoder_norm"] is False


def saved_as(architecture: str, d_model: int = 12, d_sae: int = 48) -> SAE:
    """An SAE of every architecture that files have, with weights and thresholds drawn at random."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    vectors = {name: 0.3 * normal(d_sae) for name in ("b_enc", "b_gate", "b_mag", "r_mag")}
    vectors |= {"threshold": normal(d_sae).abs(), "b_dec": 0.1 * normal(d_model)}
    cfg = {"architecture": architecture, "k": 5, "d_in": d_model, "d_sae": d_sae}
    cfg |= {"apply_b_dec_to_input": False, "d_out": d_model} if "transcoder" in architecture else {}
    return SAE(cfg, {"W_enc": normal(d_model, d_sae), "W_dec": normal(d_sae, d_model), **vectors})


@pytest.mark.parametrize("architecture", sorted(ENCODERS))
def test_sparse_features_are_the_dense_ones(architecture):
    sae, x_BD = saved_as(architecture), torch.randn(70, 12, generator=torch.Generator().manual_seed(2))
    expected_BF = sae.encode(x_BD)
    row_N, feature_N, value_N = sae.encode_sparse(x_BD)
    assert (row_N.diff() >= 0).all() and (value_N != 0).all() and 0 < len(value_N) < expected_BF.numel()
    assert len(set(zip(row_N.tolist(), feature_N.tolist(), strict=True))) == len(value_N)
    assert len(value_N) == int((expected_BF != 0).sum())
    torch.testing.assert_close(expected_BF[row_N, feature_N], value_N, rtol=1e-5, atol=1e-6)
    decoded_BD = sae.decode_sparse(len(x_BD), row_N, feature_N, value_N)
    torch.testing.assert_close(decoded_BD, sae.decode(expected_BF), rtol=1e-5, atol=1e-5)
    assert [len(column) for column in sae.encode_sparse(x_BD[:0])] == [0, 0, 0]
