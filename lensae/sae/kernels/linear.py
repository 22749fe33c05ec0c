"""Products with sparse features, and their gradients.

Shapes: B rows, D d_model, F features, N active pairs, X rows of a matrix.
"""

from __future__ import annotations

import warnings

import torch
from torch.nn.functional import embedding_bag

from lensae.sae.kernels.active import Active, Dense, Features, Pattern
from lensae.sae.kernels.backend import WITHOUT_SPARSE, implementation

GATHERED_PAIRS = 2**16  # whose rows are gathered at a time

# PyTorch says once that these tensors are in beta; what is used of them is old, and the tests hold its values.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))


def _sum_rows(rows_XD: torch.Tensor, index_N: torch.Tensor, indptr: torch.Tensor, weight_N: torch.Tensor):
    if not len(index_N):
        return rows_XD.new_zeros(len(indptr) - 1, rows_XD.shape[1])
    plain = sum_gathered_rows if rows_XD.device.type in WITHOUT_SPARSE else sum_rows
    return implementation("sum_rows", plain)(rows_XD, index_N, indptr, weight_N)


def sum_rows(rows_XD: torch.Tensor, index_N: torch.Tensor, indptr: torch.Tensor, weight_N: torch.Tensor):
    """Sums of weighted rows: output i adds weight_N[j] * rows_XD[index_N[j]] over j of [indptr[i], indptr[i + 1])."""
    return embedding_bag(
        index_N, rows_XD, indptr, mode="sum", per_sample_weights=weight_N.contiguous(), include_last_offset=True
    )


def sum_gathered_rows(rows_XD: torch.Tensor, index_N: torch.Tensor, indptr: torch.Tensor, weight_N: torch.Tensor):
    """The same without embedding_bag, which has no weights on some devices; its rows exist for a block of pairs."""
    sums = rows_XD.new_zeros(len(indptr) - 1, rows_XD.shape[1])
    output_N = torch.repeat_interleave(torch.arange(len(sums), device=index_N.device), indptr.diff())
    for pairs in torch.arange(len(index_N), device=index_N.device).split(GATHERED_PAIRS):
        sums.index_add_(0, output_N[pairs], rows_XD[index_N[pairs]] * weight_N[pairs, None])
    return sums


def scatter_gradient(pattern: Pattern, value_N: torch.Tensor, rows_BD: torch.Tensor) -> torch.Tensor:
    """f^T r: the gradient of a matrix of features (F, D), from values of pairs and rows of a batch."""
    columns = pattern.columns
    return _sum_rows(rows_BD.contiguous(), columns.row_N, columns.indptr_F1, value_N[columns.order_N])


def products_at(pattern: Pattern, rows_BD: torch.Tensor, W_FD: torch.Tensor) -> torch.Tensor:
    """The products row . W of the active pairs (N,), and of no others."""
    if not len(pattern.index_N):
        return rows_BD.new_zeros(0)
    plain = products_of_gathered if rows_BD.device.type in WITHOUT_SPARSE else products
    return implementation("products_at", plain)(pattern.indptr_B1, pattern.index_N, rows_BD, W_FD)


def products(indptr_B1: torch.Tensor, index_N: torch.Tensor, rows_BD: torch.Tensor, W_FD: torch.Tensor):
    """The products row . W of the pairs (N,), index_N[indptr_B1[b] : indptr_B1[b + 1]] being those of row b."""
    zeros_N = rows_BD.new_zeros(len(index_N))
    zeros = torch.sparse_csr_tensor(indptr_B1, index_N, zeros_N, size=(len(rows_BD), len(W_FD)), check_invariants=False)
    return torch.sparse.sampled_addmm(zeros, rows_BD.contiguous(), W_FD.T, beta=0.0).values()


def products_of_gathered(indptr_B1: torch.Tensor, index_N: torch.Tensor, rows_BD: torch.Tensor, W_FD: torch.Tensor):
    """The same without sparse tensors, which some devices do not have; rows are gathered for a block of pairs."""
    row_N = torch.repeat_interleave(torch.arange(len(rows_BD), device=index_N.device), indptr_B1.diff())
    blocks = zip(row_N.split(GATHERED_PAIRS), index_N.split(GATHERED_PAIRS), strict=True)
    return torch.cat([(rows_BD[row] * W_FD[feature]).sum(1) for row, feature in blocks])


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value_N, W_FD, b_D, pattern: Pattern):
        ctx.pattern = pattern
        ctx.save_for_backward(value_N, W_FD)
        x_hat_BD = _sum_rows(W_FD, pattern.index_N, pattern.indptr_B1, value_N)
        return x_hat_BD if b_D is None else x_hat_BD.add_(b_D)

    @staticmethod
    def backward(ctx, grad_BD):
        value_N, W_FD = ctx.saved_tensors
        needs_value, needs_weight, needs_bias, _pattern = ctx.needs_input_grad
        grad_N = products_at(ctx.pattern, grad_BD, W_FD) if needs_value else None
        grad_FD = scatter_gradient(ctx.pattern, value_N, grad_BD) if needs_weight else None
        return grad_N, grad_FD, grad_BD.sum(0) if needs_bias else None, None


def decode(features: Features, W_FD: torch.Tensor, b_D: torch.Tensor | None = None) -> torch.Tensor:
    """f W + b (B, D); for sparse features the gradients of values and weights touch active pairs only."""
    if isinstance(features, Dense):
        return features.value @ W_FD if b_D is None else torch.addmm(b_D, features.value, W_FD)
    return _Decode.apply(features.value, W_FD, b_D, features.pattern)


class _Encoded(torch.autograd.Function):
    """Pre-activations that are known already, as a function of the parameters."""

    @staticmethod
    def forward(ctx, rows_BD, shift_D, W_FD, b_F, value_N, pattern: Pattern):
        ctx.pattern = pattern
        ctx.save_for_backward(rows_BD, W_FD)
        return value_N.clone()

    @staticmethod
    def backward(ctx, grad_N):
        rows_BD, W_FD = ctx.saved_tensors
        grad_FD = scatter_gradient(ctx.pattern, grad_N, rows_BD)
        grad_F = ctx.pattern.sums_F(grad_N)
        return None, -(grad_F @ W_FD) if ctx.needs_input_grad[1] else None, grad_FD, grad_F, None, None


def encoded(
    rows_BD: torch.Tensor, shift_D: torch.Tensor, W_FD: torch.Tensor, b_F: torch.Tensor, pairs: Active
) -> Active:
    """The pairs of `pairs` with gradients: value = rows . W + b, the rows being x - shift. None goes to x."""
    return pairs.with_value(_Encoded.apply(rows_BD, shift_D, W_FD, b_F, pairs.value, pairs.pattern))
