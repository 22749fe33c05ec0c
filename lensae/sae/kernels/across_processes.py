"""Choices among the pre-activations of all processes, each of which has some of the rows or some of the features.

Shapes: B rows, F features, K candidates of a row here, A of all processes, N active pairs or values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lensae.sae.distributed.process_group import ProcessGroup
from lensae.sae.kernels.active import Active, Pattern


def largest(value_N: torch.Tensor, count: int, group: ProcessGroup) -> torch.Tensor:
    """The `count` largest values of all processes, falling (fewer, if there are fewer)."""
    own = value_N.topk(min(count, len(value_N))).values
    if group.is_single:
        return own
    every = torch.cat(group.all_gather(own))
    return every.topk(min(count, len(every))).values


def kth_largest(value_BK: torch.Tensor, k: int, group: ProcessGroup) -> torch.Tensor:
    """The k-th largest of each row over the features of all processes (B, 1), from the k largest here or all there
    are; with fewer than k the least."""
    if not group.splits_features:
        return value_BK.amin(1, keepdim=True)
    every_BA = torch.cat(_columns(value_BK, group), dim=1)
    return every_BA.topk(min(k, every_BA.shape[1]), dim=1).values.amin(1, keepdim=True)


def merge_topk(pairs: Active, k: int, group: ProcessGroup) -> Active:
    """The k largest of each row over the features of all processes; `pairs` has the same number in every row here."""
    rows = pairs.pattern.rows
    value_BK, index_BK = pairs.value.view(rows, -1), pairs.pattern.index_N.view(rows, -1)
    columns = _columns(value_BK, group)
    start = sum(rows.shape[1] for rows in columns[: group.rank])
    every_BA = torch.cat(columns, dim=1)
    keep_BA = torch.zeros_like(every_BA, dtype=torch.bool)
    keep_BA.scatter_(1, every_BA.topk(min(k, every_BA.shape[1]), dim=1).indices, True)
    keep_BK = keep_BA[:, start : start + value_BK.shape[1]]
    indptr_B1 = torch.nn.functional.pad(keep_BK.sum(1).cumsum(0), (1, 0))
    return Active(Pattern(indptr_B1, index_BK[keep_BK], pairs.pattern.d_sae), value_BK[keep_BK])


def merge_batch_topk(
    collect: Callable[[float], Active], floor: float, wanted: int, group: ProcessGroup
) -> tuple[Active, float]:
    """The `wanted` largest positive values of all processes that are here, and the least of them anywhere.

    `collect(floor)` gives the pairs above a floor; `floor`, the same everywhere, is the first that is tried.
    """
    while True:
        pairs = collect(floor)
        count = int(group.sum_over_processes(torch.tensor(len(pairs.value))))
        if count >= wanted or floor <= 0:
            break
        floor = lower(floor)
    kept = largest(pairs.value, wanted, group)
    least = float(kept[-1]) if len(kept) else 0.0
    if count <= wanted:
        return pairs, least
    return _pick(pairs, least, wanted - int((kept > least).sum()), group), least


def lower(floor: float) -> float:
    """The floor to try when too few are above this one."""
    return floor / 2 if floor > 1e-4 else 0.0


def _pick(pairs: Active, limit: float, ties: int, group: ProcessGroup) -> Active:
    """What is above the limit, and of what equals it the first `ties` in the order of the whole batch."""
    pattern = pairs.pattern
    keep_N = pairs.value > limit
    equal_N = (pairs.value == limit).nonzero().view(-1)
    # rows of a batch are dealt out in turn, ranges of features follow one another: either way this is the order
    batch_row_N = pattern.row_N[equal_N] * group.size + group.rank
    first = torch.cat(group.all_gather(batch_row_N)).sort().values[:ties]
    keep_N[equal_N[: int((first % group.size == group.rank).sum())]] = True
    at = keep_N.nonzero().view(-1)
    count_B = torch.bincount(pattern.row_N[at], minlength=pattern.rows)
    kept = Pattern(torch.nn.functional.pad(count_B.cumsum(0), (1, 0)), pattern.index_N[at], pattern.d_sae)
    return Active(kept, pairs.value[at])


def _columns(value_BK: torch.Tensor, group: ProcessGroup) -> list[torch.Tensor]:
    """The columns that every process has of the same rows."""
    return [rows.T for rows in group.all_gather(value_BK.T.contiguous())]
