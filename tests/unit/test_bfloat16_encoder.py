"""The encoder's product in bfloat16: it proposes features, float32 decides; only in training."""

from __future__ import annotations

import pytest
import torch

from lensae.core import registry
from lensae.core.errors import UserError
from lensae.core.recipe import TrainRecipe, load_train
from lensae.sae import kernels
from lensae.sae.kernels import reference
from lensae.sae.train.validation import measure

D_MODEL, D_SAE, ROWS = 48, 1024, 700
FAMILIES = registry.names("sae.architectures")
BFLOAT16 = torch.bfloat16
FLOOR_F = torch.linspace(1.7, 2.5, D_SAE)


def problem(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Rows of norm about sqrt(D), and shift, encoder with unit rows, its biases."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    W_FD = normal(D_SAE, D_MODEL)
    parameters = [0.1 * normal(D_MODEL), W_FD / W_FD.norm(dim=1, keepdim=True), 0.1 * normal(D_SAE)]
    return normal(ROWS, D_MODEL), [p.requires_grad_() for p in parameters]


CHOOSE = {
    "topk": lambda *args, dtype=None: kernels.encode_topk(*args, 16, dtype=dtype),
    "batch_topk": lambda *args, dtype=None: kernels.encode_batch_topk(*args, 16, dtype=dtype)[0],
    "above": lambda *args, dtype=None: kernels.encode_above(*args, 2.0, dtype=dtype),
    "above each": lambda *args, dtype=None: kernels.encode_above(
        *args, torch.linspace(1.7, 2.5, D_SAE).to(args[0]), dtype=dtype
    ),
}


@pytest.mark.parametrize("name", CHOOSE)
def test_values_and_gradients_are_exact(name):
    """In float64, so that a value that came out of bfloat16 would stand out, on whatever pairs were selected."""
    x_BD, parameters = problem()
    features = CHOOSE[name](x_BD, *parameters, dtype=BFLOAT16)
    pattern = features.pattern
    plain_N = reference.pre_activations(x_BD, *parameters)[pattern.row_N, pattern.index_N].relu()
    torch.testing.assert_close(features.value, plain_N, rtol=1e-12, atol=1e-12)
    weight_N = torch.linspace(-1, 1, len(plain_N), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((v * weight_N).sum(), parameters) for v in (features.value, plain_N))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CHOOSE)
def test_the_same_features_but_for_very_few(name, seed):
    """Where bfloat16 alone would choose otherwise in hundreds of cases."""
    x_BD, parameters = problem(seed, torch.float32)
    exact_N, found_N = (CHOOSE[name](x_BD, *parameters, dtype=dtype).fires() for dtype in (None, BFLOAT16))
    assert len(exact_N) > 5 * ROWS
    assert int(torch.isin(found_N, exact_N).sum()) >= 0.9995 * max(len(exact_N), len(found_N))
    low = [p.detach().to(BFLOAT16) for p in (x_BD - parameters[0], *parameters[1:])]
    rough_BF = torch.addmm(low[2], low[0], low[1].T).float()
    alone_N = reference.topk(rough_BF, 16).view(-1).nonzero().view(-1)
    if name == "topk":
        assert int(torch.isin(alone_N, exact_N).sum()) < 0.999 * len(exact_N)


def test_topk_keeps_its_number():
    """Also where fewer features exist than k and the spare ones together."""
    x_BD, (shift, W_FD, b_F) = problem(2, torch.float32)
    for k, d_sae in ((16, D_SAE), (30, 33), (33, 33)):
        features = kernels.encode_topk(x_BD, shift, W_FD[:d_sae], b_F[:d_sae], k, dtype=BFLOAT16)
        assert len(features.value) == k * ROWS and features.shape == (ROWS, d_sae)
        assert all(len(set(row)) == k for row in features.pattern.index_N.view(ROWS, k).tolist())


@pytest.mark.parametrize("guess", [None, 0.0, 1.5, 1e3])
def test_batch_topk_whatever_is_guessed(guess):
    x_BD, parameters = problem(3, torch.float32)
    features, least = kernels.encode_batch_topk(x_BD, *parameters, 16, guess, dtype=BFLOAT16)
    _features, exact = kernels.encode_batch_topk(x_BD, *parameters, 16)
    assert len(features.value) == 16 * ROWS and least == pytest.approx(exact, abs=1e-3)


def trainer_of(arch: str, encoder_dtype: str = "bfloat16"):
    torch.manual_seed(0)
    recipe = TrainRecipe(arch=arch, k=16, l1=0.05, target_l0=16, encoder_dtype=encoder_dtype)
    trainer = registry.load("sae.architectures", arch).Trainer(D_MODEL, D_SAE, recipe, 10_000)
    x_BD, _parameters = problem(4, torch.float32)
    trainer.initialise(x_BD)
    if hasattr(trainer, "density"):
        trainer.density = 16 / D_SAE
    return trainer, problem(5, torch.float32)[0]  # other rows: thresholds start exactly at some of the first


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_in_training_and_not_in_evaluation(arch, monkeypatch):
    """The products' precision is asked for in training alone; loss and gradients are those of float32 but for what few
    features differ."""
    asked = []
    blocks = kernels.encode._blocks
    monkeypatch.setattr(kernels.encode, "_blocks", lambda *a: (asked.append(a[3] if a[3:] else None), blocks(*a))[1])
    found = []
    for dtype in ("float32", "bfloat16"):
        trainer, x_BD = trainer_of(arch, dtype)
        asked.clear()
        loss = sum(trainer.train()(x_BD).losses.values())
        loss.backward()
        assert asked[-1] == (None if dtype == "float32" else BFLOAT16)
        found.append((float(loss.detach()), trainer.W_dec.grad))
        asked.clear()
        trainer.eval()
        trainer(x_BD)
        assert set(asked) == {None}
    (exact, exact_FD), (loss, grad_FD) = found
    assert loss == pytest.approx(exact, rel=1e-2)
    assert float((grad_FD - exact_FD).norm() / exact_FD.norm()) < 0.05


@pytest.mark.parametrize("arch", FAMILIES)
def test_agreement_is_counted(arch):
    """Against counting in whole matrices; nothing to count where both are float32."""
    trainer, x_BD = trainer_of(arch)
    trainer.eval()
    half = [x_BD[:300].numpy(), x_BD[300:].numpy()]
    share = measure(trainer, half, 0.5).agreement
    fires = []
    for product in (None, BFLOAT16):
        trainer.product_dtype = product
        fires.append([trainer(torch.from_numpy(rows) * 0.5).features.dense() > 0 for rows in half])
    both = sum(int((a & b).sum()) for a, b in zip(*fires, strict=True))
    most = sum(max(int(a.sum()), int(b.sum())) for a, b in zip(*fires, strict=True))
    assert share == both / most and share > 0.99
    assert measure(trainer_of(arch, "float32")[0], half, 0.5).agreement is None


def test_agreement_sees_a_difference(monkeypatch):
    """Of an encoder that selects wrongly."""
    trainer, x_BD = trainer_of("topk")
    topk = kernels.encode_topk
    wrong = lambda x, *args: topk(x if args[-1] is None else x.roll(1, 0), *args)  # noqa: E731
    monkeypatch.setattr(kernels, "encode_topk", wrong)
    assert measure(trainer, [x_BD.numpy()], 1.0).agreement < 0.2


def test_the_option(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[train]\nencoder_dtype = "bfloat16"\n')
    assert load_train(path).encoder_dtype == "bfloat16" and load_train(None).encoder_dtype == "float32"
    with pytest.raises(UserError, match="encoder_dtype"):
        TrainRecipe(encoder_dtype="float8")
    path.write_text("[train]\nencoder_dtype = 16\n")
    with pytest.raises(UserError, match="encoder_dtype"):
        load_train(path)
