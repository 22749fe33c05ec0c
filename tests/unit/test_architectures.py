"""What every family of sparse autoencoder must do: one contract, held by all of them, and what each one is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from planted_dictionary import planted, train_on_rows

from lensae.core import registry
from lensae.core.errors import LensaeError, UserError
from lensae.core.recipe import TrainRecipe
from lensae.sae import functional
from lensae.sae.formats import saelens as checkpoint
from lensae.sae.kernels import reference

ARCHITECTURES = registry.names("sae.architectures")
TARGETED = ("relu", "tied-l1", "gated")  # families whose L0 follows from a penalty
SAVED_AS = {
    "batchtopk": "jumprelu",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "matryoshka": "jumprelu",
    "relu": "standard",
    "tied-l1": "standard",
    "topk": "topk",
}
TANH = {"l0_penalty": "tanh"}
D_MODEL, D_SAE = 12, 30


pytestmark = pytest.mark.usefixtures("one_thread")


def rows(number: int = 50, seed: int = 1) -> torch.Tensor:
    return torch.randn(number, D_MODEL, generator=torch.Generator().manual_seed(seed)) * 7 + 1


def trainer_of(arch: str, d_out: int | None = None, dead_window: int = 10_000, **recipe):
    """A trainer that has started on `rows`, with parameters that are nowhere equal or zero."""
    torch.manual_seed(0)
    settings = TrainRecipe(arch=arch, **{"k": 4, "l1": 0.05, **recipe})
    module = registry.load("sae.architectures", arch)
    trainer = module.Trainer(D_MODEL, D_SAE, settings, dead_window, d_out)
    x_BD = normalised(rows(400))
    trainer.initialise(x_BD, *([] if d_out is None else [torch.randn(400, d_out)]))
    with torch.no_grad():
        for name, parameter in trainer.named_parameters():
            if name != "W_dec" or not trainer.keeps_unit_rows:
                parameter += 0.05 * torch.randn_like(parameter)
    return trainer


def normalised(x_BD: torch.Tensor) -> torch.Tensor:
    return x_BD * functional.norm_scale(x_BD)


def ready(trainer):
    """As after training: calibrated, in evaluation."""
    trainer.eval()
    trainer.calibrate(lambda: [normalised(rows(400, 2))])
    return trainer


def test_every_family_is_tested():
    assert set(SAVED_AS) == set(ARCHITECTURES) == {arch for arch, *_ in PLANTED}


@pytest.mark.parametrize("d_out", [None, D_MODEL, 17])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_saved_is_what_was_trained(arch, d_out, tmp_path):
    """On raw rows, through a file, with the scale folded away: the same features and the same reconstruction."""
    if arch == "tied-l1" and d_out == 17:
        with pytest.raises(UserError, match="cannot predict"):
            trainer_of(arch, d_out)
        return
    trainer = ready(trainer_of(arch, d_out))
    raw_BD, scale, target_scale = rows(), functional.norm_scale(rows()), None if d_out is None else 0.31
    step = trainer(raw_BD * scale) if d_out is None else trainer(raw_BD * scale, torch.randn(50, d_out))
    checkpoint.save(tmp_path, trainer.sae(scale, {"model_name": "toy"}, target_scale))
    sae = checkpoint.load(tmp_path)
    unit = target_scale or scale
    features_BF = step.features.dense().detach()
    if not trainer.keeps_unit_rows:
        features_BF = features_BF * trainer.W_dec.detach().norm(dim=1)
    assert 0 < float((features_BF > 0).sum()) < features_BF.numel()
    torch.testing.assert_close(sae.encode(raw_BD), features_BF / unit, rtol=1e-4, atol=1e-4)
    x_hat_BD = step.x_hat_BD.detach() / unit
    torch.testing.assert_close(sae.decode(sae.encode(raw_BD)), x_hat_BD, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert sae.d_out == (d_out or D_MODEL)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_decoding_needs_no_encoding(arch):
    """A loaded SAE decodes features it has never made, and the same twice."""
    sae = ready(trainer_of(arch)).sae(0.5, {})
    features_BF = torch.rand(3, D_SAE)
    expected = features_BF @ sae.W_dec + sae.tensors["b_dec"]
    torch.testing.assert_close(sae.decode(features_BF), expected)
    sae.encode(rows())
    torch.testing.assert_close(sae.decode(features_BF), expected)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_layout_of_saelens(arch, tmp_path):
    """The files hold what SAELens 6 reads, and its own formulas on them give the same features."""
    from safetensors.numpy import load_file

    checkpoint.save(tmp_path, ready(trainer_of(arch)).sae(0.5, {"hook_name": "blocks.1.hook_resid_post"}))
    cfg, t = json.loads((tmp_path / "cfg.json").read_text()), load_file(tmp_path / "sae_weights.safetensors")
    assert cfg["architecture"] == SAVED_AS[arch]
    assert cfg["metadata"]["sae_lens_version"] >= "6.0.0" and cfg["dtype"] == "float32"
    assert (cfg["d_in"], cfg["d_sae"]) == (D_MODEL, D_SAE) and cfg["normalize_activations"] == "none"
    vectors = {"jumprelu": ["b_enc", "threshold"], "gated": ["b_gate", "b_mag", "r_mag"]}
    expected = {"W_enc": (D_MODEL, D_SAE), "W_dec": (D_SAE, D_MODEL), "b_dec": (D_MODEL,)}
    expected |= dict.fromkeys(vectors.get(SAVED_AS[arch], ["b_enc"]), (D_SAE,))
    assert {name: array.shape for name, array in t.items()} == expected
    x = np.random.default_rng(0).normal(size=(20, D_MODEL)).astype(np.float32) * 5
    centred = x - t["b_dec"] * cfg["apply_b_dec_to_input"]
    if SAVED_AS[arch] == "gated":
        magnitude = np.maximum(centred @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"], 0)
        found = magnitude * (centred @ t["W_enc"] + t["b_gate"] > 0)
    else:
        found = np.maximum(centred @ t["W_enc"] + t["b_enc"], 0)
        if SAVED_AS[arch] == "topk":
            found[found < np.sort(found, axis=1)[:, -cfg["k"], None]] = 0
        if SAVED_AS[arch] == "jumprelu":
            found[found <= t["threshold"]] = 0
    np.testing.assert_allclose(checkpoint.load(tmp_path).encode(torch.from_numpy(x)).numpy(), found, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "name", "d_out"),
    [("relu", "transcoder", 17), ("jumprelu", "jumprelu_transcoder", 17), ("topk", "topk", D_MODEL)],
)
def test_transcoders_are_saved_under_their_names(arch, name, d_out):
    cfg = ready(trainer_of(arch, d_out)).sae(1.0, {}, 2.0).cfg
    assert (cfg["architecture"], cfg["d_out"], cfg["apply_b_dec_to_input"]) == (name, d_out, False)


# What each family minimises, in plain dense formulas: (trainer, rows) -> the sum of its losses.


def plain_weights(t, x_BD):
    return [min(1.0, (t.recipe.norm_limit * D_MODEL**0.5 / float(row_D.norm())) ** 2) for row_D in x_BD]


def plain_mse(t, x_BD, x_hat_BD):
    weight_B = torch.tensor(plain_weights(t, x_BD)).to(x_BD)
    limited_BD = x_BD * weight_B.sqrt()[:, None]
    error_B = (x_BD - x_hat_BD).square().sum(1) * weight_B
    return error_B.mean() / (limited_BD - limited_BD.mean(0)).square().sum(1).mean()


def plain_aux(t, x_BD, pre_BF, features_BF, x_hat_BD):
    dead_F = ((t.dead.silent_F >= t.dead.window) & ~(features_BF > 0).any(0)).double()
    error_BD = (x_BD - x_hat_BD).detach()
    features_BF = reference.topk(torch.where(dead_F > 0, pre_BF, -1e9), t.d_model // 2)
    weight_B1 = torch.tensor(plain_weights(t, x_BD)).to(x_BD)[:, None]
    left_BD = error_BD - features_BF @ t.W_dec
    return t.aux * (weight_B1 * left_BD.square()).sum() / (weight_B1 * error_BD.square()).sum()


def plain_pre(t, x_BD):
    return reference.pre_activations(x_BD, t.b_dec, t.W_enc_FD, t.b_enc)


def plain_topk(t, x_BD):
    pre_BF = plain_pre(t, x_BD)
    features_BF = reference.topk(pre_BF, 4)
    x_hat_BD = features_BF @ t.W_dec + t.b_dec
    return plain_mse(t, x_BD, x_hat_BD) + plain_aux(t, x_BD, pre_BF, features_BF, x_hat_BD)


def plain_batchtopk(t, x_BD):
    pre_BF = plain_pre(t, x_BD)
    features_BF = reference.batch_topk(pre_BF, 4)
    x_hat_BD = features_BF @ t.W_dec + t.b_dec
    return plain_mse(t, x_BD, x_hat_BD) + plain_aux(t, x_BD, pre_BF, features_BF, x_hat_BD)


def plain_matryoshka(t, x_BD):
    pre_BF = plain_pre(t, x_BD)
    features_BF = reference.batch_topk(pre_BF, 4)
    x_hats = [features_BF[:, :end] @ t.W_dec[:end] + t.b_dec for end in (2, 4, 8, 15, 30)]
    return sum(plain_mse(t, x_BD, x_hat) for x_hat in x_hats) / 5 + plain_aux(t, x_BD, pre_BF, features_BF, x_hats[-1])


def plain_relu(t, x_BD):
    features_BF = plain_pre(t, x_BD).relu()
    l1 = (features_BF * t.W_dec.norm(dim=1)).sum(1).mean() / D_MODEL**0.5
    return plain_mse(t, x_BD, features_BF @ t.W_dec + t.b_dec) + 0.05 * l1


def plain_tied_l1(t, x_BD):
    features_BF = reference.pre_activations(x_BD, t.b_dec, t.W_dec, t.b_enc).relu()
    return plain_mse(t, x_BD, features_BF @ t.W_dec + t.b_dec) + 0.05 * features_BF.sum(1).mean() / D_MODEL**0.5


def plain_gated(t, x_BD):
    """Rajamanoharan et al. 2024 (gated), equations 6 to 8."""
    gate_BF = plain_pre(t, x_BD)
    magnitude_BF = (x_BD - t.b_dec) @ (t.W_enc_FD.T * t.r_mag.exp()) + t.b_mag
    x_hat_BD = ((gate_BF > 0) * magnitude_BF.relu()) @ t.W_dec + t.b_dec
    alone_BD = gate_BF.relu() @ t.W_dec.detach() + t.b_dec.detach()
    l1 = gate_BF.relu().sum(1).mean() / D_MODEL**0.5
    return plain_mse(t, x_BD, x_hat_BD) + 0.05 * l1 + plain_mse(t, x_BD, alone_BD)


def plain_jumprelu(t, x_BD):
    """Rajamanoharan et al. 2024 (JumpReLU), equations 11 and 12: the estimates stand as constants before a threshold
    whose own value cancels out. With "tanh" the number of features is a constant, and the sum of their tanh cancels
    out."""
    pre_BF, threshold_F, width = plain_pre(t, x_BD), t.log_threshold.exp(), t.recipe.bandwidth
    fires_BF = (pre_BF > threshold_F).double()
    near_BF = ((pre_BF - threshold_F).abs() < width / 2).double()
    change_F = threshold_F - threshold_F.detach()
    features_BF = pre_BF * fires_BF - (threshold_F / width * near_BF).detach() * change_F
    if t.recipe.l0_penalty == "tanh":
        tanh_BF = (features_BF / width).tanh()
        l0 = (fires_BF + tanh_BF - tanh_BF.detach()).sum(1).mean()
    else:
        l0 = (fires_BF - near_BF / width * change_F).sum(1).mean()
    x_hat_BD = features_BF @ t.W_dec + t.b_dec
    penalty = t.recipe.l0_weight * (l0 / 4 - 1).square()
    return plain_mse(t, x_BD, x_hat_BD) + penalty + plain_aux(t, x_BD, pre_BF, features_BF, x_hat_BD)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("arch", "settings"), [*((arch, {}) for arch in ARCHITECTURES), ("jumprelu", TANH)])
def test_the_loss_and_its_gradients_against_plain_formulas(arch, settings, sparse):
    """In training, with dead features, in float64: every parameter's gradient, straight-through estimates included.
    Some rows are longer than the limit.

    Families that choose between sparse and dense features are tested with both.
    """
    trainer = trainer_of(arch, bandwidth=1.5, norm_limit=0.9, **settings).double().train()
    if not sparse and not hasattr(trainer, "density"):
        pytest.skip("its features are always sparse")
    trainer.density = 0.0 if sparse else 1.0
    trainer.dead.silent_F[3:12] = 10_000
    trainer.b_enc.data[3:12] -= 2.5  # some are positive somewhere, few of them among the largest
    x_BD = normalised(rows(40, 5)).double()
    assert 0 < sum(weight < 1 for weight in plain_weights(trainer, x_BD)) < len(x_BD)
    formula = globals()[f"plain_{arch.replace('-', '_')}"]
    expected = formula(trainer, x_BD)
    parameters = dict(trainer.named_parameters())
    wanted = torch.autograd.grad(expected, parameters.values(), allow_unused=True)
    losses = trainer(x_BD).losses
    assert float(losses.get("aux", torch.ones(())).detach()) > 0
    total = sum(losses.values())
    found = torch.autograd.grad(total, parameters.values(), allow_unused=True)
    torch.testing.assert_close(total, expected)
    for name, ours, theirs in zip(parameters, found, wanted, strict=True):
        assert theirs.abs().sum() > 0, f"{name} has no gradient to compare"
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - {"jumprelu"}))
def test_gradients_against_finite_differences(arch):
    """In float64, along random directions of every parameter (jumprelu's thresholds have estimates, not gradients)."""
    trainer = trainer_of(arch).double().eval()
    x_BD = normalised(rows(40, 5)).double()

    def loss() -> torch.Tensor:
        return sum(trainer(x_BD).losses.values())

    loss().backward()
    for name, parameter in trainer.named_parameters():
        direction = torch.randn_like(parameter)
        step = 1e-6 / direction.norm()
        with torch.no_grad():
            parameter += step * direction
            up = loss()
            parameter -= 2 * step * direction
            down = loss()
            parameter += step * direction
        numeric = float((up - down) / (2 * step))
        assert numeric == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_decoder_keeps_unit_rows(arch):
    """Or saves them so, where the norms are free."""
    trainer = trainer_of(arch)
    optimizer = torch.optim.Adam(trainer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(trainer(normalised(rows(64))).losses.values()).backward()
        trainer.before_step()
        if trainer.keeps_unit_rows:
            assert (trainer.W_dec.grad * trainer.W_dec).sum(1).abs().max() < 1e-5
        optimizer.step()
        trainer.after_step()
    if trainer.keeps_unit_rows:
        torch.testing.assert_close(trainer.W_dec.norm(dim=1), torch.ones(D_SAE))
    torch.testing.assert_close(ready(trainer).sae(2.0, {}).W_dec.norm(dim=1), torch.ones(D_SAE))


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "matryoshka", "jumprelu"])
def test_aux_loss_moves_dead_features_and_only_them(arch):
    trainer = trainer_of(arch, dead_window=1_000, aux=0.03)
    x_BD = normalised(rows(64)) * 3
    trainer(x_BD)
    assert float(trainer(x_BD).losses["aux"].detach()) == 0, "nothing is dead yet"
    trainer.b_enc.data[7] = -2.0 * x_BD.norm(dim=1).max()  # never positive: what revives it is not its encoder
    trainer.b_enc.data[9] = -1.0
    trainer.dead.silent_F[[7, 9]] = 1_000
    trainer.dead.update = lambda *_: None  # that batch may wake one of them before the loss
    trainer(x_BD).losses["aux"].backward()
    moved = trainer.W_dec.grad.to_dense().norm(dim=1) > 0
    assert moved.tolist() == [feature == 9 for feature in range(D_SAE)]
    assert trainer.W_enc_FD.grad.to_dense()[9].norm() > 0


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka"])
def test_the_threshold_gives_k_on_held_out_rows(arch):
    """Over several batches of different sizes; without it nothing is saved."""
    trainer = trainer_of(arch).eval()
    with pytest.raises(LensaeError, match="threshold"):
        trainer.sae(1.0, {})
    batches = [normalised(rows(n, n)) for n in (400, 250, 30)]
    trainer.calibrate(lambda: iter(batches))
    fired = sum(int(trainer(batch).features.count_F().sum()) for batch in batches)
    assert fired == 4 * 680
    sae = trainer.sae(0.5, {})
    assert sum(int((sae.encode(batch / 0.5) > 0).sum()) for batch in batches) == fired


def test_more_active_features_than_there_are():
    for arch in ("topk", "batchtopk", "matryoshka"):
        with pytest.raises(UserError, match="more than"):
            trainer_of(arch, k=31)


# Planted truth: rows that are sums of 8 of 256 unit vectors in 64 dimensions.

# Each with the least mean max cosine that is asked of it. Matryoshka's nested losses pull the first features towards
# mixtures of the planted ones, which have no order: with as many features as there are vectors it comes to 0.81, with
# twice as many to 0.93.
PLANTED = [
    ("topk", {"lr": 3e-3}, 0.95),
    ("batchtopk", {"lr": 1e-2, "epochs": 20}, 0.95),
    ("matryoshka", {"lr": 3e-3, "width": 8}, 0.91),
    ("relu", {"lr": 3e-3, "target_l0": 8}, 0.95),
    ("tied-l1", {"lr": 3e-3, "target_l0": 8}, 0.95),
    ("gated", {"lr": 3e-3, "target_l0": 8}, 0.95),
    ("jumprelu", {"lr": 6e-3, "l0_weight": 1.0}, 0.95),
    ("jumprelu", {"lr": 6e-3, "l0_weight": 1.0, **TANH}, 0.95),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "settings", "least"), PLANTED)
def test_planted_directions_are_found(arch, settings, least):
    """And as many features fire as were asked for, within 5 %."""
    x, dictionary, _weights = planted(24_000, 1)
    held, *_ = planted(2_000, 2)
    recipe = TrainRecipe(arch=arch, **{"k": 8, "batch": 256, "width": 4, "epochs": 25, **settings})
    result = train_on_rows(recipe, x, held)
    sae = result.sae({})
    best = (dictionary @ sae.W_dec.T).max(dim=1).values.mean()
    assert best >= least, f"mean max cosine {best:.3f}"
    assert result.heldout.l0 == pytest.approx(8, rel=0.05)
    assert float((sae.encode(torch.from_numpy(held)) > 0).sum(1).float().mean()) == pytest.approx(8, rel=0.05)
    assert result.heldout.explained_variance > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["topk", "relu", "batchtopk"])
def test_transcoders_learn_a_map(arch):
    """Targets of another width, which the rows' planted features write in directions of their own."""
    outputs = torch.randn(256, 40, generator=torch.Generator().manual_seed(3))
    (x, _, weights), (held, _, held_weights) = planted(24_000, 1), planted(1_000, 2)
    settings = {"target_l0": 8} if arch in TARGETED else {}
    recipe = TrainRecipe(arch=arch, k=8, lr=3e-3, epochs=12, batch=256, **settings)
    target, held_target = (weights @ outputs).numpy(), (held_weights @ outputs).numpy()
    result = train_on_rows(recipe, (x, target), (held, held_target), d_out=40)
    sae = result.sae({})
    predicted = sae.decode(sae.encode(torch.from_numpy(held))).numpy()
    explained = 1 - ((predicted - held_target) ** 2).sum() / ((held_target - held_target.mean(0)) ** 2).sum()
    assert explained == pytest.approx(result.heldout.explained_variance, abs=1e-3)
    assert explained > 0.2, explained


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_same_seed_same_weights(arch):
    x, *_ = planted(2_000, 3)
    recipe = TrainRecipe(arch=arch, width=2, k=4, epochs=2, batch=256)
    first, second = (train_on_rows(recipe, x, x[:200]).trainer.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
