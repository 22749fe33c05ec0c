"""The sparse kernels against plain dense formulas: values and every gradient, in float64."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lensae.model.precision import fast_matmul
from lensae.sae import kernels
from lensae.sae.kernels import Dense, encode, linear, reference, select
from lensae.sae.kernels.active import sums_in_order

ROWS, D_MODEL, D_SAE = 37, 10, 64


def problem(seed: int, rows: int = ROWS, d_sae: int = D_SAE, bias: float = 0.0):
    """Rows, shift, encoder, its biases, decoder, its bias, a gradient for the output; float64, parameters with grad."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x_BD, up_BD = normal(rows, D_MODEL), normal(rows, D_MODEL)
    parameters = [
        normal(D_MODEL),
        normal(d_sae, D_MODEL),
        normal(d_sae) + bias,
        normal(d_sae, D_MODEL),
        normal(D_MODEL),
    ]
    return x_BD, [p.requires_grad_() for p in parameters], up_BD


def check(seed: int, sparse, dense, **kwargs) -> None:
    """`sparse` and `dense` take (x, shift, W, b) and give features; both are decoded and compared, gradients too."""
    found = []
    for choose in (sparse, dense):
        x_BD, parameters, up_BD = problem(seed, **kwargs)
        features = choose(x_BD, *parameters[:3])
        x_hat_BD = kernels.decode(features, *parameters[3:])
        # The second term gives the values a gradient of their own, as a penalty does.
        loss = (x_hat_BD * up_BD).sum() + (features.value * features.per_pair(parameters[2].square() + 1)).sum()
        gradients = torch.autograd.grad(loss, parameters)
        found.append((features.dense().detach(), x_hat_BD.detach(), features.count_F(), *gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def dense_topk(k: int):
    return lambda *args: Dense(reference.topk(reference.pre_activations(*args), k))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 80), st.sampled_from([-4.0, 0.0]))
def test_topk_against_the_formula(seed, k, bias):
    """Down to a bias of -4, with which many of the k largest are not positive and many features are never hit."""
    check(seed, lambda *args: kernels.encode_topk(*args, k), dense_topk(k), bias=bias)


def test_topk_over_several_blocks(monkeypatch):
    monkeypatch.setattr(encode, "LEAST_ROWS", 8)
    monkeypatch.setattr(encode, "BLOCK", 1)
    check(1, lambda *args: kernels.encode_topk(*args, 5), dense_topk(5))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float64, 1e-12)])
@pytest.mark.parametrize("around", [fast_matmul, nullcontext])
def test_repeated_product_is_the_product(dtype, error, around):
    """Through oneDNN and not, for fewer rows than it was made for as well, with W as a part of something larger."""
    with around():
        x_BD, (_shift, W_FD, b_F, *_decoder), _up = problem(7, rows=40, d_sae=2 * D_SAE)
        W_FD, b_F = W_FD[::2], b_F[::2]
        multiply = encode.repeated_product(W_FD.to(dtype), b_F.to(dtype), 32)
        for rows_BD in x_BD.split(32):
            plain_BF = rows_BD @ W_FD.T + b_F
            off = ((multiply(rows_BD.to(dtype)) - plain_BF).norm() / plain_BF.norm()).detach()
            assert float(off) < error


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 80), st.sampled_from([None, -1.0, 0.0, 1.7, 1e3]))
def test_batch_topk_against_the_formula(seed, k, guess):
    """Whatever is guessed of the threshold, and with k so large that not enough are positive."""
    check(
        seed,
        lambda *args: kernels.encode_batch_topk(*args, k, guess)[0],
        lambda *args: Dense(reference.batch_topk(reference.pre_activations(*args), k)),
        bias=-3.0,
    )


def test_batch_topk_tells_the_least():
    x_BD, parameters, _up = problem(3)
    features, least = kernels.encode_batch_topk(x_BD, *parameters[:3], 4)
    assert len(features.value) == 4 * ROWS and least == float(features.value.detach().min())


@pytest.mark.parametrize("floor", [0.0, 2.0, 50.0, "each"])
def test_above_against_the_formula(floor):
    """A floor that nothing reaches (empty rows only), and one for each feature."""
    floor = torch.linspace(-1, 4, D_SAE, dtype=torch.float64) if floor == "each" else floor

    def dense(*args):
        return Dense(reference.above(reference.pre_activations(*args), floor))

    def sparse(*args):
        features = kernels.encode_above(*args, floor)
        assert isinstance(features, kernels.Active)
        return features

    check(5, sparse, dense)


def test_above_is_dense_where_that_is_faster():
    x_BD, parameters, _up = problem(5)
    features = kernels.encode_above(x_BD, *parameters[:3], 0.0, density=0.5)
    assert isinstance(features, Dense) and not kernels.pays_off(0.5) and kernels.pays_off(0.01)
    torch.testing.assert_close(features.value, reference.pre_activations(x_BD, *parameters[:3]))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([(512, 7), (512, 64), (2048, 32), (4096, 100), (515, 8), (96, 96)]))
def test_the_largest_of_each_row(seed, shape):
    """Through groups of neighbours, and for widths that have none; in float32, as it is used."""
    d_sae, k = shape
    pre_BF = torch.randn(9, d_sae, generator=torch.Generator().manual_seed(seed))
    value_BK, index_BK = select.topk_per_row(pre_BF, k)
    assert torch.equal(value_BK.sort(dim=1).values, pre_BF.topk(k, dim=1).values.sort(dim=1).values)
    assert torch.equal(pre_BF.gather(1, index_BK), value_BK)
    assert all(len(set(row)) == k for row in index_BK.tolist())


@pytest.mark.parametrize("values", [1, 2, 7])
def test_the_largest_among_equals(values):
    """Rows of few different values: any choice among equals will do, but each feature once, and the values right."""
    pre_BF = torch.randint(values, (20, 2048), generator=torch.Generator().manual_seed(0)).float()
    value_BK, index_BK = select.topk_per_row(pre_BF, 32)
    assert torch.equal(value_BK.sort(dim=1).values, pre_BF.topk(32, dim=1).values.sort(dim=1).values)
    assert torch.equal(pre_BF.gather(1, index_BK), value_BK)
    assert all(len(set(row)) == 32 for row in index_BK.tolist())


def test_groups_are_used_at_the_usual_widths():
    assert [select._group_width(f, 32) for f in (2304, 4608, 18432, 65536)] == [16, 32, 128, 128]


def test_the_largest_of_the_batch_among_equals():
    x_BD = torch.ones(6, D_MODEL)
    parameters = torch.zeros(D_MODEL), torch.ones(D_SAE, D_MODEL), torch.zeros(D_SAE)
    features, least = kernels.encode_batch_topk(x_BD, *parameters, 3)
    assert len(features.value) == 18 and least == D_MODEL and features.count_F().sum() == 18


def test_prefixes_against_slices():
    """Regrouped by ranges of features, with gradients."""
    x_BD, parameters, up_BD = problem(7)
    bounds = [0, 4, 16, D_SAE]
    shift, W_enc, b_enc, W_dec, _b_dec = parameters
    ours = kernels.decode(kernels.encode_topk(x_BD, shift, W_enc, b_enc, 6).split_at(bounds), W_dec).view(
        3, ROWS, D_MODEL
    )
    dense_BF = reference.topk(reference.pre_activations(x_BD, shift, W_enc, b_enc), 6)
    theirs = torch.stack([dense_BF[:, a:b] @ W_dec[a:b] for a, b in itertools.pairwise(bounds)])
    torch.testing.assert_close(ours, theirs)
    weights = torch.arange(1.0, 4, dtype=torch.float64)[:, None, None] * up_BD
    wanted = parameters[:4]
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), wanted),
        torch.autograd.grad((theirs * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_decoder_alone_has_gradients():
    """A decoder on features that need none, and features on a decoder that needs none."""
    x_BD, (shift, W_enc, b_enc, W_dec, b_dec), up_BD = problem(8)
    features = kernels.encode_topk(x_BD, shift, W_enc, b_enc, 6)
    fixed = features.with_value(features.value.detach())
    (grad_FD,) = torch.autograd.grad((kernels.decode(fixed, W_dec, b_dec) * up_BD).sum(), W_dec)
    torch.testing.assert_close(grad_FD, fixed.dense().T @ up_BD)
    value_N = fixed.value.clone().requires_grad_()
    x_hat_BD = kernels.decode(features.with_value(value_N), W_dec.detach())
    (grad_N,) = torch.autograd.grad((x_hat_BD * up_BD).sum(), value_N)
    rows, index = features.pattern.row_N, features.pattern.index_N
    torch.testing.assert_close(grad_N, (up_BD @ W_dec.T)[rows, index])


def test_sums_of_features_in_order():
    """As bincount gives them, with features that have no pair."""
    x_BD, parameters, _up = problem(11)
    pattern = kernels.encode_topk(x_BD, *parameters[:3], 2).pattern
    value_N = torch.randn(len(pattern.index_N), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums_F = pattern.sums_F(value_N)
    assert (sums_F == 0).any() and (sums_F != 0).any()
    torch.testing.assert_close(sums_in_order(pattern.columns, value_N), sums_F)


def test_float32_is_as_exact_as_dense():
    """Relative errors against float64, beside those of the dense float32 formulas."""
    x_BD, parameters, up_BD = problem(9, rows=600)
    exact, plain, ours = [], [], []
    for found, dtype, choose in (
        (exact, torch.float64, dense_topk(8)),
        (plain, torch.float32, dense_topk(8)),
        (ours, torch.float32, lambda *args: kernels.encode_topk(*args, 8)),
    ):
        cast = [p.detach().to(dtype).requires_grad_() for p in parameters]
        x_hat = kernels.decode(choose(x_BD.to(dtype), *cast[:3]), *cast[3:])
        found += [x_hat.detach(), *torch.autograd.grad((x_hat * up_BD.to(dtype)).sum(), cast)]
    for truth, dense, sparse in zip(exact, plain, ours, strict=True):
        error = float((sparse - truth).norm() / truth.norm())
        assert error <= max(2 * float((dense - truth).norm() / truth.norm()), 1e-6)


@pytest.mark.parametrize("any_size", [False, True])
def test_freed_memory_is_kept(any_size):
    """glibc agrees, and elsewhere nothing happens."""
    import platform

    from lensae.core.memory import keep_freed_memory

    assert keep_freed_memory(any_size) == (platform.libc_ver()[0] == "glibc")
    assert math.isfinite(float(torch.randn(1_000_000).sum()))


def test_gathered_rows_against_the_sparse_operations(monkeypatch):
    """What devices without sparse operations compute instead, over several blocks of pairs, with gradients."""
    monkeypatch.setattr(linear, "GATHERED_PAIRS", 50)
    results = []
    for without in ((), ("cpu",)):
        monkeypatch.setattr(linear, "WITHOUT_SPARSE", without)
        x_BD, parameters, up_BD = problem(9)
        features = kernels.encode_topk(x_BD, *parameters[:3], 5, dtype=None)
        x_hat_BD = kernels.decode(features, *parameters[3:])
        results.append((x_hat_BD.detach(), *torch.autograd.grad((x_hat_BD * up_BD).sum(), parameters)))
    for gathered, sparse in zip(*results, strict=True):
        torch.testing.assert_close(gathered, sparse)
