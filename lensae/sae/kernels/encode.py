"""From rows to sparse pre-activations, a block of rows at a time: the (B, F) matrix never exists.

With a `dtype` of fewer bits the matrix product is computed in it, and only proposes: somewhat more pairs than are
wanted. Their values are computed anew in the precision of the rows, and those values decide.

Shapes: B rows, D d_model, F features, K active features per row, M proposed ones, N active pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from lensae.sae.kernels import divided, select
from lensae.sae.kernels.active import Active, Dense, Features, Pattern
from lensae.sae.kernels.linear import encoded, products_at
from lensae.sae.world import ALONE, World

# Rows of a block: by measurement at 4,608 features, where 512 are slower; at 18,432 they make no difference.
BLOCK = 1024
# Above this share of active pairs the dense products are faster (measured: equal at 14 % of 4,608 features and at 7 %
# of 18,432).
SPARSE_BELOW = 0.08
# What a product in fewer bits proposes beyond what is wanted: features per row, and the share of a floor below it.
# (Measured on a trained SAE of 4,608 features, k 32: of what float32 selects bfloat16 alone selects 99.4 %, with 8 more
# to choose from all but 1 in 260,000; they cost 4 % of the encoder's time.)
SPARE, SLACK = 8, 2**-7


def pays_off(density: float) -> bool:
    """Whether sparse features are faster than dense ones at this share of active pairs."""
    return density < SPARSE_BELOW


def product(rows_BD, W_FD, b_F, out=None) -> torch.Tensor:
    """rows W^T + b (B, F), perhaps in the memory `out`. On CPUs addmm copies the bias to every row first; adding it
    afterwards saves 7 % (4,608 and 18,432 features)."""
    if rows_BD.is_cuda:
        return torch.addmm(b_F, rows_BD, W_FD.T, out=out)
    return torch.mm(rows_BD, W_FD.T, out=out).add_(b_F)


def _blocks(rows_BD, W_FD, b_F, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
    """Pre-activations of BLOCK rows after another, each in the memory of the one before.

    A product in fewer bits is widened again: what selects is several times as fast on float32.
    """
    buffer = rows_BD.new_empty(min(BLOCK, len(rows_BD)), len(W_FD))
    if dtype is None:
        for part_BD in rows_BD.split(BLOCK):
            yield product(part_BD, W_FD, b_F, buffer[: len(part_BD)])
        return
    low_FD, low_F, low = W_FD.to(dtype), b_F.to(dtype), torch.empty_like(buffer, dtype=dtype)
    for part_BD in rows_BD.split(BLOCK):  # the sum is rounded once: bias and product may nearly cancel
        pre_BF = torch.addmm(low_F, part_BD.to(dtype), low_FD.T, out=low[: len(part_BD)])
        yield buffer[: len(part_BD)].copy_(pre_BF)


@torch.no_grad()
def _collect(rows_BD, W_FD, b_F, choose: Callable, dtype: torch.dtype | None = None) -> Active:
    """What `choose` finds in every block: it gives the number of pairs of each row, their features and values."""
    if not len(rows_BD):
        none = Pattern(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), len(W_FD))
        return Active(none, rows_BD.new_zeros(0))
    found = (choose(pre_BF) for pre_BF in _blocks(rows_BD, W_FD, b_F, dtype))
    counts, indices, values = zip(*found, strict=True)
    indptr_B1 = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0))
    pattern = Pattern(indptr_B1, torch.cat(indices), len(W_FD))
    if dtype is None:
        return Active(pattern, torch.cat(values))
    return Active(pattern, products_at(pattern, rows_BD, W_FD) + b_F[pattern.index_N])


def topk(x_BD, shift_D, W_FD, b_F, k: int, world: World = ALONE, dtype: torch.dtype | None = None) -> Active:
    """The k largest pre-activations of each row, of those the positive ones; the others are there with value zero.

    Pre-activations are (x - shift) W^T + b; gradients go to shift, W and b. Where the `world` has features divided,
    the k largest are those of all processes.
    """
    proposed = k if dtype is None else k + SPARE

    def choose(pre_BF: torch.Tensor):
        value_BM, index_BM = select.topk(pre_BF, proposed)
        count_B = torch.full((len(pre_BF),), value_BM.shape[1], device=pre_BF.device)
        return count_B, index_BM.reshape(-1), value_BM.reshape(-1)

    rows_BD = (x_BD - shift_D).detach()
    best = _collect(rows_BD, W_FD, b_F, choose, dtype)
    best = best if dtype is None else select.best(best, k)
    if world.features_divided:
        best = divided.topk(best, k, world)
    found = encoded(rows_BD, shift_D, W_FD, b_F, best)
    return found.of(found.value.relu())


def above(
    x_BD,
    shift_D,
    W_FD,
    b_F,
    floor: float | torch.Tensor = 0.0,
    density: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Features:
    """The pre-activations above `floor` (one number or one per feature).

    `density` is the share of pairs to be expected: where that does not pay off the whole matrix is given instead,
    what lies below the floor included, in the precision of the rows.
    """
    if not pays_off(density):
        return Dense(product(x_BD - shift_D, W_FD, b_F))
    rows_BD = (x_BD - shift_D).detach()
    return encoded(rows_BD, shift_D, W_FD, b_F, _above(rows_BD, W_FD, b_F, floor, dtype))


@torch.no_grad()
def _above(rows_BD, W_FD, b_F, floor: float | torch.Tensor, dtype: torch.dtype | None) -> Active:
    if dtype is None:
        return _collect(rows_BD, W_FD, b_F, lambda pre_BF: select.above(pre_BF, floor))
    low = floor - SLACK * abs(floor)
    found = _collect(rows_BD, W_FD, b_F, lambda pre_BF: select.above(pre_BF, low), dtype)
    floor_N = floor[found.pattern.index_N] if isinstance(floor, torch.Tensor) else floor
    return select.kept(found, found.value > floor_N)


def batch_topk(
    x_BD,
    shift_D,
    W_FD,
    b_F,
    k: int,
    guess: float | None = None,
    world: World = ALONE,
    dtype: torch.dtype | None = None,
) -> tuple[Active, float]:
    """The B k largest positive pre-activations of the batch as a whole, over all processes, and the least of them.

    `guess` is what the least of them may be; a wrong one costs time and changes nothing.
    """
    wanted = world.rows(len(x_BD)) * min(k, world.features(len(W_FD)))
    rows_BD = (x_BD - shift_D).detach()
    floor = _first_guess(rows_BD, W_FD, b_F, k, world) if guess is None else max(guess, 0.0)

    def collect(low: float) -> Active:
        return _above(rows_BD, W_FD, b_F, low, dtype)

    if world.alone:
        while len((found := collect(floor)).value) < wanted and floor > 0:
            floor = divided.lower(floor)
        found = select.largest(found, wanted)
        least = float(found.value.min()) if len(found.value) else 0.0
    else:
        found, least = divided.batch_topk(collect, floor, wanted, world)
    return encoded(rows_BD, shift_D, W_FD, b_F, found), least


@torch.no_grad()
def _first_guess(rows_BD, W_FD, b_F, k: int, world: World) -> float:
    """Somewhat below the k-th largest pre-activation of typical rows (of the first process, which has some)."""
    middle = torch.zeros((), dtype=torch.float64)
    if world.first:
        pre_BF = next(_blocks(rows_BD, W_FD, b_F))
        middle = select.topk(pre_BF, k)[0].amin(1).median().double()
    return max(0.0, 0.7 * float(world.total(middle)))
