"""Which entries of a block of pre-activations are kept.

Shapes: B rows, F features, K kept of each row, G groups of neighbouring features, M candidates, C of them in a padded
row, N pairs.
"""

from __future__ import annotations

import math

import torch

from lensae.sae.kernels.active import Active, Pattern
from lensae.sae.kernels.backend import implementation


def topk_per_row(pre_BF: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest entries of each row and where they are, in no order (B, K), (B, K)."""
    return implementation("topk_per_row", grouped_topk)(pre_BF, k)


def grouped_topk(pre_BF: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, in PyTorch's operations.

    The k groups with the largest maxima hold the k largest entries, so only they are searched: the k-th of these
    maxima is a floor that at least k entries reach, and little more than k do.
    """
    rows, d_sae = pre_BF.shape
    k = min(k, d_sae)
    width = _group_width(d_sae, k)
    if width == 1:
        return pre_BF.topk(k, dim=1, sorted=False)
    groups = d_sae // width
    best_BK, group_BK = pre_BF.view(rows * groups, width).amax(1).view(rows, groups).topk(k, dim=1, sorted=False)
    first_B1 = torch.arange(0, rows * groups, groups, device=pre_BF.device)[:, None]
    entry_BM = pre_BF.view(-1, width).index_select(0, (group_BK + first_B1).view(-1)).view(rows, k * width)
    value_BK, at_BK = _topk_above(entry_BM, best_BK.amin(1, keepdim=True), k)
    return value_BK, group_BK.gather(1, _divided(at_BK, width)) * width + at_BK % width


def _group_width(d_sae: int, k: int) -> int:
    """How many neighbours share a maximum: some hundreds of groups, and at least twice as many as are searched."""
    for width in (128, 64, 32, 16):
        if d_sae % width == 0 and d_sae // width >= max(128, 2 * k):
            return width
    return 1


def _topk_above(entry_BM: torch.Tensor, floor_B1: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row, where at least k of them are known to reach the floor."""
    rows, width = entry_BM.shape
    at_N = (entry_BM >= floor_B1).view(-1).nonzero().view(-1)
    row_N = _divided(at_N, width)
    count_B = torch.bincount(row_N, minlength=rows)
    most = int(count_B.max())
    slot_N = torch.arange(len(at_N), device=at_N.device) + (row_N * most - (count_B.cumsum(0) - count_B)[row_N])
    value_BC = entry_BM.new_full((rows * most,), -math.inf)
    value_BC[slot_N] = entry_BM.view(-1)[at_N]
    index_BC = at_N.new_zeros(rows * most)
    index_BC[slot_N] = at_N - row_N * width
    value_BK, slot_BK = value_BC.view(rows, most).topk(k, dim=1, sorted=False)
    return value_BK, index_BC.view(rows, most).gather(1, slot_BK)


def _divided(at_N: torch.Tensor, width: int) -> torch.Tensor:
    """at // width, by a shift where that does."""
    return at_N >> (width.bit_length() - 1) if width & (width - 1) == 0 else at_N // width


def above(pre_BF: torch.Tensor, floor: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The entries above a floor (a number, or one per feature): how many in each row, their features, their values."""
    rows, d_sae = pre_BF.shape
    at_N = (pre_BF > floor).view(-1).nonzero().view(-1)
    row_N = _divided(at_N, d_sae)
    return torch.bincount(row_N, minlength=rows), at_N - row_N * d_sae, pre_BF.view(-1)[at_N]


def largest(pairs: Active, wanted: int) -> Active:
    """The `wanted` largest values of all (of equal ones at the limit the first are kept)."""
    spare = len(pairs.value) - wanted
    if spare <= 0:
        return pairs
    limit = _kth_smallest(pairs.value, spare)
    keep_N = pairs.value > limit
    missing = wanted - int(keep_N.sum())
    if missing:
        keep_N[(pairs.value == limit).nonzero().view(-1)[:missing]] = True
    return masked(pairs, keep_N)


def _kth_smallest(value_N: torch.Tensor, k: int) -> torch.Tensor:
    """A number on the device of the values; MPS has no kthvalue."""
    if value_N.device.type == "mps":
        return value_N.cpu().kthvalue(k).values.to(value_N.device)
    return value_N.kthvalue(k).values


def masked(pairs: Active, keep_N: torch.Tensor) -> Active:
    """The pairs that are marked."""
    pattern, at = pairs.pattern, keep_N.nonzero().view(-1)
    count_B = torch.bincount(pattern.row_N[at], minlength=pattern.rows)
    fewer = Pattern(torch.nn.functional.pad(count_B.cumsum(0), (1, 0)), pattern.index_N[at], pattern.d_sae)
    return Active(fewer, pairs.value[at])


def topk_of_pairs(pairs: Active, k: int) -> Active:
    """The k largest values of each row, where all rows have equally many."""
    rows = pairs.pattern.rows
    each = len(pairs.value) // max(rows, 1)
    value_BK, at_BK = pairs.value.view(rows, each).topk(min(k, each), dim=1, sorted=False)
    index_BK = pairs.pattern.index_N.view(rows, each).gather(1, at_BK)
    indptr_B1 = torch.arange(rows + 1, device=at_BK.device) * value_BK.shape[1]
    return Active(Pattern(indptr_B1, index_BK.view(-1), pairs.pattern.d_sae), value_BK.view(-1))
