"""The Triton kernels against dense formulas and PyTorch's operations; without a GPU in Triton's interpreter."""

from __future__ import annotations

import time

import pytest
import torch

pytest.importorskip("triton")

from lensae.sae import kernels
from lensae.sae.kernels import Backend, Pattern, autotune, backend, linear, reference, select
from lensae.sae.kernels import triton as on_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = ("sum_rows", "products_at", "topk_per_row")
EVERYTHING = Backend(frozenset(KERNELS))
# Columns below, at and above a tile's width; rows with more pairs than a tile has; features that never fire.
SHAPES = [(1, 1, 1, 1), (5, 3, 7, 4), (9, 128, 40, 20), (12, 130, 90, 17), (3, 257, 33, 33)]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def pattern_of(rows: int, d_sae: int, most: int, seed: int = 0) -> Pattern:
    """Between no and `most` features in a row, each once, the last third of the features never."""
    generator = torch.Generator().manual_seed(seed)
    live = max(1, d_sae - d_sae // 3)
    counts = torch.randint(0, min(most, live) + 1, (rows,), generator=generator)
    counts[0] = min(most, live)
    index = [torch.randperm(live, generator=generator)[: int(count)] for count in counts]
    indptr_B1 = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return Pattern(indptr_B1.to(DEVICE), torch.cat(index).to(DEVICE), d_sae)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_rows(shape):
    """In order of rows, as decoding needs them, and in order of features, as gradients of weights do."""
    rows, d_model, d_sae, most = shape
    pattern = pattern_of(rows, d_sae, most)
    value_N, W_FD, up_BD = normal(1, len(pattern.index_N)), normal(2, d_sae, d_model), normal(3, rows, d_model)
    dense_BF = kernels.Active(pattern, value_N).dense()
    decoded_BD = on_triton.sum_rows(W_FD, pattern.index_N, pattern.indptr_B1, value_N)
    torch.testing.assert_close(decoded_BD, dense_BF @ W_FD)
    columns = pattern.columns
    grad_FD = on_triton.sum_rows(up_BD, columns.row_N, columns.indptr_F1, value_N[columns.order_N])
    torch.testing.assert_close(grad_FD, dense_BF.T @ up_BD)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_active_pairs(shape):
    rows, d_model, d_sae, most = shape
    pattern = pattern_of(rows, d_sae, most)
    x_BD, W_FD = normal(1, rows, d_model), normal(2, d_sae, d_model)
    found_N = on_triton.products_at(pattern.indptr_B1, pattern.index_N, x_BD, W_FD)
    torch.testing.assert_close(found_N, (x_BD @ W_FD.T)[pattern.row_N, pattern.index_N])


def test_rows_that_are_not_contiguous():
    pattern = pattern_of(6, 20, 5)
    x_BD, W_FD, value_N = normal(1, 10, 6).T, normal(2, 10, 20).T, normal(3, 2 * len(pattern.index_N))[::2]
    found_N = on_triton.products_at(pattern.indptr_B1, pattern.index_N, x_BD, W_FD)
    torch.testing.assert_close(found_N, (x_BD @ W_FD.T)[pattern.row_N, pattern.index_N])
    decoded_BD = on_triton.sum_rows(W_FD, pattern.index_N, pattern.indptr_B1, value_N)
    torch.testing.assert_close(decoded_BD, kernels.Active(pattern, value_N).dense() @ W_FD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 30, 30), (6, 100, 7), (3, 513, 32), (2, 4608, 40)])
def test_the_largest_of_each_row(shape, dtype):
    """With entries that are infinite or zero of either sign among them."""
    rows, d_sae, k = shape
    pre_BF = normal(5, rows, d_sae, dtype=dtype)
    if d_sae > 10:
        pre_BF[0, :4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    value_BK, index_BK = on_triton.topk_per_row(pre_BF, k)
    assert value_BK.dtype == dtype
    assert torch.equal(value_BK.sort(dim=1).values, pre_BF.topk(k, dim=1).values.sort(dim=1).values)
    assert torch.equal(pre_BF.gather(1, index_BK), value_BK)
    assert all(len(set(row)) == k for row in index_BK.tolist())


def test_the_first_among_equals():
    pre_BF = torch.tensor([[1.0, 2, 1, 1, 3, 1], [-1.0, -1, -1, -1, -1, -1]], device=DEVICE)
    _value_BK, index_BK = on_triton.topk_per_row(pre_BF, 4)
    assert sorted(index_BK[0].tolist()) == [0, 1, 2, 4] and sorted(index_BK[1].tolist()) == [0, 1, 2, 3]


def test_rows_that_no_program_can_hold():
    with pytest.raises(ValueError, match="more than"):
        on_triton.topk_per_row(torch.zeros(1, on_triton.LARGEST_ROW + 1, device=DEVICE), 4)
    with pytest.raises(ValueError, match="float64"):
        on_triton.topk_per_row(torch.zeros(1, 8, device=DEVICE, dtype=torch.float64), 4)


CHOOSE = {
    "topk": (lambda *args: kernels.encode_topk(*args, 5), lambda pre_BF: reference.topk(pre_BF, 5)),
    "batch_topk": (
        lambda *args: kernels.encode_batch_topk(*args, 5)[0],
        lambda pre_BF: reference.batch_topk(pre_BF, 5),
    ),
    "above": (lambda *args: kernels.encode_above(*args, 2.0), lambda pre_BF: reference.above(pre_BF, 2.0)),
    "nothing above": (lambda *args: kernels.encode_above(*args, 1e3), lambda pre_BF: reference.above(pre_BF, 1e3)),
    "bfloat16": (
        lambda *args: kernels.encode_topk(*args, 5, dtype=torch.bfloat16),
        lambda pre_BF: reference.topk(pre_BF, 5),
    ),
}


@pytest.mark.parametrize("name", CHOOSE)
def test_features_and_their_gradients(name, monkeypatch):
    """A whole pass: selecting, decoding, and the gradients of every parameter, through nothing but Triton's kernels."""
    sparse, dense = CHOOSE[name]
    monkeypatch.setattr(linear, "sum_rows", None)
    monkeypatch.setattr(linear, "products", None)
    monkeypatch.setattr(select, "grouped_topk", None)
    x_BD, up_BD = normal(1, 11, 130, dtype=torch.float32), normal(2, 11, 130, dtype=torch.float32)
    shapes = [(130,), (70, 130), (70,), (70, 130), (130,)]
    parameters = [(normal(n, *s, dtype=torch.float32) / s[-1] ** 0.5).requires_grad_() for n, s in enumerate(shapes)]
    with kernels.use_backend(EVERYTHING):
        features = sparse(x_BD, *parameters[:3])
        x_hat_BD = kernels.decode(features, *parameters[3:])
        ours = torch.autograd.grad((x_hat_BD * up_BD).sum(), parameters)
    plain_BF = dense(reference.pre_activations(x_BD, *parameters[:3]))
    plain_BD = reference.decode(plain_BF, *parameters[3:])
    torch.testing.assert_close(features.dense(), plain_BF, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x_hat_BD, plain_BD, rtol=1e-4, atol=1e-5)
    for one, other in zip(ours, torch.autograd.grad((plain_BD * up_BD).sum(), parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def slow(call):
    def slowly(*args):
        time.sleep(0.1)
        return call(*args)

    return slowly


PLAIN = {
    "sum_rows": (linear, "sum_rows"),
    "products_at": (linear, "products"),
    "topk_per_row": (select, "grouped_topk"),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_faster_one_is_chosen(kernel, monkeypatch):
    """Of two that are the same, but for one that was made slow."""
    monkeypatch.setattr(autotune, "REPEATS", 2)
    module, name = PLAIN[kernel]
    plain, arguments = getattr(module, name), {kernel: autotune.problem(4, 10, 40, 3, DEVICE)[kernel]}
    for slower in ("torch", "triton"):
        monkeypatch.setattr(module, name, slow(plain) if slower == "torch" else plain)
        monkeypatch.setattr(on_triton, kernel, slow(plain) if slower == "triton" else plain)
        found = autotune.compare(arguments)
        assert found.triton == (frozenset([kernel]) if slower == "torch" else frozenset())
        assert found.seconds[kernel][slower] >= 0.1 and len(found.seconds[kernel]) == 2 and not found.refused


def fails(*_args):
    raise RuntimeError("no such instruction\nand more of it")


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_that_is_wrong_or_fails_is_not_chosen(kernel, monkeypatch):
    monkeypatch.setattr(autotune, "REPEATS", 1)
    arguments = {kernel: autotune.problem(4, 10, 40, 3, DEVICE)[kernel]}
    monkeypatch.setattr(on_triton, kernel, fails)
    assert autotune.compare(arguments) == Backend(refused={kernel: "RuntimeError: no such instruction"})
    plain = getattr(*PLAIN[kernel])
    wrong = {"topk_per_row": lambda *args: (plain(*args)[0], plain(*args)[1].roll(1, 0))}
    monkeypatch.setattr(on_triton, kernel, wrong.get(kernel, lambda *args: 1.01 * plain(*args)))
    found = autotune.compare(arguments)
    assert not found.triton and "differs" in found.refused[kernel]


def test_the_choice_ends_with_its_block():
    with kernels.use_backend(EVERYTHING):
        assert backend.implementation("topk_per_row", fails) is on_triton.topk_per_row
    assert backend.implementation("topk_per_row", fails) is fails
