"""The sparse kernels in Triton, for CUDA devices; imported only where they may be used, as Triton is optional.

Every sum is made by one program in a fixed order, so that the same rows give the same bytes again.

Shapes: B rows, D d_model, F features, K kept of each row, N active pairs, X rows of a matrix.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PAIRS, WIDTH = 16, 128  # of a tile: so many pairs, so many columns of their rows
LARGEST_ROW = 2**15  # features of a row that one program can hold


@triton.jit
def _sum_rows(rows, index, indptr, weight, out, d_model, PAIRS: tl.constexpr, WIDTH: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    first, last = tl.load(indptr + at), tl.load(indptr + at + 1)
    total = tl.zeros([WIDTH], dtype=out.dtype.element_ty)
    for start in range(first, last, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        row = tl.load(index + pair, mask=pair < last, other=0)
        factor = tl.load(weight + pair, mask=pair < last, other=0.0)
        tile = (pair < last)[:, None] & (column < d_model)[None, :]
        values = tl.load(rows + row[:, None] * d_model + column[None, :], mask=tile, other=0.0)
        total += tl.sum(values * factor[:, None], axis=0)
    tl.store(out + at * d_model + column, total, mask=column < d_model)


@triton.jit
def _products_at(rows, matrix, index, indptr, out, d_model, PAIRS: tl.constexpr, WIDTH: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    first, last = tl.load(indptr + at), tl.load(indptr + at + 1)
    for start in range(first, last, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        feature = tl.load(index + pair, mask=pair < last, other=0)
        total = tl.zeros([PAIRS], dtype=out.dtype.element_ty)
        for left in range(0, d_model, WIDTH):
            column = left + tl.arange(0, WIDTH)
            row = tl.load(rows + at * d_model + column, mask=column < d_model, other=0.0)
            tile = (pair < last)[:, None] & (column < d_model)[None, :]
            values = tl.load(matrix + feature[:, None] * d_model + column[None, :], mask=tile, other=0.0)
            total += tl.sum(values * row[None, :], axis=1)
        tl.store(out + pair, total, mask=pair < last)


@triton.jit
def _topk(pre, value, index, d_sae, k, FEATURES: tl.constexpr):
    """The k-th largest is searched bit by bit among integers in the order of the floats; then all above it are kept,
    and of those equal to it the first."""
    at = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, FEATURES)
    entry = tl.load(pre + at * d_sae + feature, mask=feature < d_sae, other=float("-inf")).to(tl.float32)
    bits = entry.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    low, high = tl.full([], -(2**31), tl.int64), tl.full([], 2**31 - 1, tl.int64)
    for _ in range(32):
        middle = (low + high + 1) >> 1
        reached = tl.sum((order >= middle).to(tl.int32), axis=0) >= k
        low, high = tl.where(reached, middle, low), tl.where(reached, high, middle - 1)
    above, equal = (order > low).to(tl.int32), (order == low).to(tl.int32)
    count = tl.sum(above, axis=0)
    slot = tl.where(above > 0, tl.cumsum(above, axis=0), count + tl.cumsum(equal, axis=0)) - 1
    keep = (above + equal > 0) & (slot < k)
    tl.store(value + at * k + slot, entry, mask=keep)
    tl.store(index + at * k + slot, feature.to(tl.int64), mask=keep)


def sum_rows(rows_XD: torch.Tensor, index_N: torch.Tensor, indptr: torch.Tensor, weight_N: torch.Tensor):
    """Sums of weighted rows: output i adds weight_N[j] * rows_XD[index_N[j]] over j of [indptr[i], indptr[i + 1])."""
    outputs, d_model = len(indptr) - 1, rows_XD.shape[1]
    out = rows_XD.new_empty(outputs, d_model)
    grid = (outputs, triton.cdiv(d_model, WIDTH))
    tensors = (rows_XD.contiguous(), index_N, indptr, weight_N.contiguous(), out)
    _sum_rows[grid](*tensors, d_model, PAIRS=PAIRS, WIDTH=WIDTH)
    return out


def products_at(indptr_B1: torch.Tensor, index_N: torch.Tensor, rows_BD: torch.Tensor, W_FD: torch.Tensor):
    """The products row . W of the pairs (N,), index_N[indptr_B1[b] : indptr_B1[b + 1]] being those of row b."""
    out = rows_BD.new_empty(len(index_N))
    tensors = (rows_BD.contiguous(), W_FD.contiguous(), index_N, indptr_B1, out)
    _products_at[(len(rows_BD),)](*tensors, rows_BD.shape[1], PAIRS=PAIRS, WIDTH=WIDTH)
    return out


def topk_per_row(pre_BF: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest entries of each row and where they are, in no order (B, K), (B, K); of equal ones the first.

    Raises ValueError for rows of more than LARGEST_ROW, and for float64.
    """
    rows, d_sae = pre_BF.shape
    if pre_BF.dtype == torch.float64:
        raise ValueError("the largest of float64 rows are not selected here")
    if d_sae > LARGEST_ROW:
        raise ValueError(f"{d_sae} features of a row are more than {LARGEST_ROW}")
    k = min(k, d_sae)
    value_BK = pre_BF.new_empty(rows, k)
    index_BK = torch.empty(rows, k, dtype=torch.int64, device=pre_BF.device)
    features = triton.next_power_of_2(d_sae)
    warps = min(32, max(4, features // 1024))
    _topk[(rows,)](pre_BF.contiguous(), value_BK, index_BK, d_sae, k, FEATURES=features, num_warps=warps)
    return value_BK, index_BK
