"""From rows to sparse pre-activations, a block of rows at a time: the (B, F) matrix never exists.

With a `dtype` of fewer bits the matrix product is computed in it, and only proposes: somewhat more pairs than are
wanted. Their values are computed anew in the precision of the rows, and those values decide.

Shapes: B rows, D d_model, F features, K active features per row, M proposed ones, N active pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from lensae.sae.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lensae.sae.kernels import across_processes, select
from lensae.sae.kernels.active import Active, Dense, Features, Pattern
from lensae.sae.kernels.linear import encoded, products_at

# A block is so many pre-activations on CPUs, of 64 rows at least: a quarter as many are slower at 4,608 features, four
# times as many at 18,432 (measured). On other devices it is so many rows.
BLOCK, LEAST_ROWS, DEVICE_ROWS = 1024 * 4608, 64, 1024
# Above this share of active pairs the dense products are faster (measured: equal at 14 % of 4,608 features and at 7 %
# of 18,432).
SPARSE_BELOW = 0.08
# What a product in fewer bits proposes beyond what is wanted: features per row, and how far below a floor, relative to
# the floor plus 1 (of rows of norm sqrt(D) and an encoder of about unit rows such a product is off by 2^-9).
# (Measured on a trained SAE of 4,608 features, k 32: of what float32 selects bfloat16 alone selects 99.4 %, with 8 more
# to choose from all but 1 in 260,000; they cost 4 % of the encoder's time.)
SPARE, SLACK = 8, 2**-7


def pays_off(density: float) -> bool:
    """Whether sparse features are faster than dense ones at this share of active pairs."""
    return density < SPARSE_BELOW


def screening_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where this device multiplies it several times as fast as float32, else None: the precision in which
    held-out rows propose their features."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else None
    return None


def product(rows_BD, W_FD, b_F) -> torch.Tensor:
    """rows W^T + b (B, F). On CPUs addmm copies the bias to every row first; adding it afterwards saves 7 % (4,608 and
    18,432 features)."""
    if rows_BD.device.type != "cpu":
        return torch.addmm(b_F, rows_BD, W_FD.T)
    return torch.mm(rows_BD, W_FD.T).add_(b_F)


def repeated_product(W_FD, b_F, rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function `product` of about so many rows, without gradients, to be called several times.

    Where products are oneDNN's it brings W into its own order once, not at every call, and adds the bias on its way.
    """
    if not _through_onednn(W_FD):
        return lambda rows_BD: product(rows_BD, W_FD, b_F)
    onednn = torch.ops.mkldnn
    packed = onednn._reorder_linear_weight(W_FD.detach().contiguous(), rows)
    return lambda rows_BD: onednn._linear_pointwise(rows_BD, packed, b_F.detach(), "none", [], "")


def _through_onednn(W_FD: torch.Tensor) -> bool:
    """Whether this machine computes such products in oneDNN: float32 when precision "medium" says so."""
    if W_FD.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if W_FD.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return W_FD.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"


def _blocks(rows_BD, W_FD, b_F, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
    """Pre-activations of one block of rows after another; the memory of one is free when the next is asked for, if
    nothing else holds it.

    A product in fewer bits is widened again: what selects is several times as fast on float32.
    """
    size = DEVICE_ROWS if rows_BD.device.type != "cpu" else max(LEAST_ROWS, BLOCK // len(W_FD))
    low = dtype or rows_BD.dtype
    multiply = repeated_product(W_FD.to(low), b_F.to(low), size)  # adds b before it rounds: the sum may be nearly zero
    for block_BD in rows_BD.split(size):
        yield multiply(block_BD.to(low)).to(rows_BD.dtype)


@torch.no_grad()
def _collect(rows_BD, W_FD, b_F, choose: Callable, dtype: torch.dtype | None = None) -> Active:
    """What `choose` finds in every block: it gives the number of pairs of each row, their features and values."""
    if not len(rows_BD):
        none = Pattern(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), len(W_FD))
        return Active(none, rows_BD.new_zeros(0))
    chosen = map(choose, _blocks(rows_BD, W_FD, b_F, dtype))
    counts, indices, values = zip(*chosen, strict=True)
    indptr_B1 = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0))
    pattern = Pattern(indptr_B1, torch.cat(indices), len(W_FD))
    if dtype is None:
        return Active(pattern, torch.cat(values))
    return Active(pattern, products_at(pattern, rows_BD, W_FD) + b_F[pattern.index_N])


def encode_topk(
    x_BD, shift_D, W_FD, b_F, k: int, group: ProcessGroup = SINGLE_PROCESS, dtype: torch.dtype | None = None
) -> Active:
    """The k largest pre-activations of each row, of those the positive ones; the others are there with value zero.

    Pre-activations are (x - shift) W^T + b; gradients go to shift, W and b. Where the `group` has features divided,
    the k largest are those of all processes.
    """
    proposed = k if dtype is None else k + SPARE

    def choose(pre_BF: torch.Tensor):
        value_BM, index_BM = select.topk_per_row(pre_BF, proposed)
        count_B = torch.full((len(pre_BF),), value_BM.shape[1], device=pre_BF.device)
        return count_B, index_BM.reshape(-1), value_BM.reshape(-1)

    rows_BD = (x_BD - shift_D).detach()
    best = _collect(rows_BD, W_FD, b_F, choose, dtype)
    best = best if dtype is None else select.topk_of_pairs(best, k)
    if group.splits_features:
        best = across_processes.merge_topk(best, k, group)
    pairs = encoded(rows_BD, shift_D, W_FD, b_F, best)
    return pairs.with_value(pairs.value.relu())


def encode_above(
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
    size = floor.abs() if isinstance(floor, torch.Tensor) else abs(floor)
    low = floor - SLACK * (1 + size)
    pairs = _collect(rows_BD, W_FD, b_F, lambda pre_BF: select.above(pre_BF, low), dtype)
    floor_N = floor[pairs.pattern.index_N] if isinstance(floor, torch.Tensor) else floor
    return select.masked(pairs, pairs.value > floor_N)


def encode_batch_topk(
    x_BD,
    shift_D,
    W_FD,
    b_F,
    k: int,
    guess: float | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    dtype: torch.dtype | None = None,
) -> tuple[Active, float]:
    """The B k largest positive pre-activations of the batch as a whole, over all processes, and the least of them.

    `guess` is what the least of them may be; a wrong one costs time and changes nothing.
    """
    wanted = group.count_rows(len(x_BD)) * min(k, group.count_features(len(W_FD)))
    rows_BD = (x_BD - shift_D).detach()
    floor = _first_guess(rows_BD, W_FD, b_F, k, group) if guess is None else max(guess, 0.0)

    def collect(low: float) -> Active:
        return _above(rows_BD, W_FD, b_F, low, dtype)

    if group.is_single:
        while len((pairs := collect(floor)).value) < wanted and floor > 0:
            floor = across_processes.lower(floor)
        pairs = select.largest(pairs, wanted)
        least = float(pairs.value.min()) if len(pairs.value) else 0.0
    else:
        pairs, least = across_processes.merge_batch_topk(collect, floor, wanted, group)
    return encoded(rows_BD, shift_D, W_FD, b_F, pairs), least


@torch.no_grad()
def _first_guess(rows_BD, W_FD, b_F, k: int, group: ProcessGroup) -> float:
    """Somewhat below the k-th largest pre-activation of typical rows (of the first process, which has some)."""
    middle = torch.zeros((), dtype=torch.float64)
    if group.is_first:
        pre_BF = next(_blocks(rows_BD, W_FD, b_F))
        middle = select.topk_per_row(pre_BF, k)[0].amin(1).median().cpu().double()
    return max(0.0, 0.7 * float(group.sum_over_processes(middle)))
