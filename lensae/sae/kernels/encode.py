"""From rows to sparse pre-activations, a block of rows at a time: the (B, F) matrix never exists.

Shapes: B rows, D d_model, F features, K active features per row, N active pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from lensae.sae.kernels import divided, select
from lensae.sae.kernels.active import Active, Dense, Features, Pattern
from lensae.sae.kernels.linear import encoded
from lensae.sae.world import ALONE, World

# Rows of a block: few enough that its pre-activations stay in a cache, enough for the product to run at full speed.
BLOCK = 512
# Above this share of active pairs the dense products are faster (measured: equal at 14 % of 4,608 features and at 7 %
# of 18,432).
SPARSE_BELOW = 0.08


def pays_off(density: float) -> bool:
    """Whether sparse features are faster than dense ones at this share of active pairs."""
    return density < SPARSE_BELOW


def _blocks(x_BD, shift_D, W_FD, b_F) -> Iterator[torch.Tensor]:
    """Pre-activations of BLOCK rows after another, each in the memory of the one before."""
    buffer = x_BD.new_empty(min(BLOCK, len(x_BD)), len(W_FD))
    for part_BD in x_BD.split(BLOCK):
        yield torch.addmm(b_F, part_BD - shift_D, W_FD.T, out=buffer[: len(part_BD)])


@torch.no_grad()
def _collect(x_BD, shift_D, W_FD, b_F, choose: Callable) -> Active:
    """What `choose` finds in every block: it gives the number of pairs of each row, their features and values."""
    if not len(x_BD):
        none = Pattern(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), len(W_FD))
        return Active(none, x_BD.new_zeros(0))
    counts, indices, values = zip(*(choose(pre) for pre in _blocks(x_BD, shift_D, W_FD, b_F)), strict=True)
    indptr_B1 = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0))
    return Active(Pattern(indptr_B1, torch.cat(indices), len(W_FD)), torch.cat(values))


def topk(x_BD, shift_D, W_FD, b_F, k: int, world: World = ALONE) -> Active:
    """The k largest pre-activations of each row, of those the positive ones; the others are there with value zero.

    Pre-activations are (x - shift) W^T + b; gradients go to shift, W and b. Where the `world` has features divided,
    the k largest are those of all processes.
    """

    def choose(pre_BF: torch.Tensor):
        value_BK, index_BK = select.topk(pre_BF, k)
        count_B = torch.full((len(pre_BF),), value_BK.shape[1], device=pre_BF.device)
        return count_B, index_BK.reshape(-1), value_BK.reshape(-1)

    best = _collect(x_BD, shift_D, W_FD, b_F, choose)
    if world.features_divided:
        best = divided.topk(best, k, world)
    found = encoded(x_BD, shift_D, W_FD, b_F, best)
    return found.of(found.value.relu())


def above(x_BD, shift_D, W_FD, b_F, floor: float | torch.Tensor = 0.0, density: float = 0.0) -> Features:
    """The pre-activations above `floor` (one number or one per feature).

    `density` is the share of pairs to be expected: where that does not pay off the whole matrix is given instead,
    what lies below the floor included.
    """
    if not pays_off(density):
        return Dense(torch.addmm(b_F, x_BD - shift_D, W_FD.T))
    found = _collect(x_BD, shift_D, W_FD, b_F, lambda pre_BF: select.above(pre_BF, floor))
    return encoded(x_BD, shift_D, W_FD, b_F, found)


def batch_topk(
    x_BD, shift_D, W_FD, b_F, k: int, guess: float | None = None, world: World = ALONE
) -> tuple[Active, float]:
    """The B k largest positive pre-activations of the batch as a whole, over all processes, and the least of them.

    `guess` is what the least of them may be; a wrong one costs time and changes nothing.
    """
    wanted = world.rows(len(x_BD)) * min(k, world.features(len(W_FD)))
    floor = _first_guess(x_BD, shift_D, W_FD, b_F, k, world) if guess is None else max(guess, 0.0)

    def collect(low: float) -> Active:
        return _collect(x_BD, shift_D, W_FD, b_F, lambda pre_BF: select.above(pre_BF, low))

    if not world.alone:
        found, least = divided.batch_topk(collect, floor, wanted, world)
        return encoded(x_BD, shift_D, W_FD, b_F, found), least
    while len((found := collect(floor)).value) < wanted and floor > 0:
        floor = divided.lower(floor)
    found = select.largest(found, wanted)
    least = float(found.value.min()) if len(found.value) else 0.0
    return encoded(x_BD, shift_D, W_FD, b_F, found), least


@torch.no_grad()
def _first_guess(x_BD, shift_D, W_FD, b_F, k: int, world: World) -> float:
    """Somewhat below the k-th largest pre-activation of typical rows (of the first process, which has some)."""
    middle = torch.zeros((), dtype=torch.float64)
    if world.first:
        pre_BF = next(_blocks(x_BD, shift_D, W_FD, b_F))
        middle = select.topk(pre_BF, k)[0].amin(1).median().double()
    return max(0.0, 0.7 * float(world.total(middle)))
