"""Choosing the faster implementation of each sparse kernel, by timing both.

Shapes: B rows, D d_model, K active features per row, F features, N active pairs.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import torch

from lensae.sae.kernels import linear, select
from lensae.sae.kernels.active import Pattern
from lensae.sae.kernels.backend import TORCH, Backend

REPEATS = 10
# How far the two may differ, relative to the largest value: sums of some thousand products in another order.
TOLERANCE = 1e-4


def choose_backend(rows: int, d_model: int, d_sae: int, k: int, device: str | torch.device) -> Backend:
    """The faster implementation of each kernel for a training of these shapes, from timing both on made-up rows.

    Away from CUDA, or without Triton, it is PyTorch's, and nothing is timed.
    """
    if torch.device(device).type != "cuda" or importlib.util.find_spec("triton") is None:
        return TORCH
    return compare(problem(rows, d_model, d_sae, k, device), torch.cuda.synchronize)


def problem(rows: int, d_model: int, d_sae: int, k: int, device: str | torch.device) -> dict[str, tuple]:
    """Made-up arguments of each kernel, by its name."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    k = min(k, d_sae)
    index_N = torch.randint(d_sae, (rows * k,), generator=generator).to(device)
    pattern = Pattern(torch.arange(rows + 1, device=device) * k, index_N, d_sae)
    rows_BD, W_FD, columns = normal(rows, d_model), normal(d_sae, d_model), pattern.columns
    return {
        "sum_rows": (rows_BD, columns.row_N, columns.indptr_F1, normal(rows * k)),
        "products_at": (pattern.indptr_B1, index_N, rows_BD, W_FD),
        "topk_per_row": (normal(min(rows, 512), d_sae), k),
    }


def compare(arguments: dict[str, tuple], synchronize: Callable[[], None] = lambda: None) -> Backend:
    """The faster implementation of each kernel with these arguments, once a call of each has given the same."""
    from lensae.sae.kernels import triton

    plain = {"sum_rows": linear.sum_rows, "products_at": linear.products, "topk_per_row": select.grouped_topk}
    faster: set[str] = set()
    seconds: dict[str, dict[str, float]] = {}
    refused: dict[str, str] = {}
    for kernel, given in arguments.items():
        both = {"torch": plain[kernel], "triton": getattr(triton, kernel)}
        try:
            refused |= _differs(kernel, given, *(call(*given) for call in both.values()))
        except Exception as error:  # a compiler's errors have no common kind
            refused[kernel] = f"{type(error).__name__}: {error}".splitlines()[0]
        if kernel not in refused:
            seconds[kernel] = {name: _seconds(lambda: call(*given), synchronize) for name, call in both.items()}  # noqa: B023
            if seconds[kernel]["triton"] < seconds[kernel]["torch"]:
                faster.add(kernel)
    return Backend(frozenset(faster), seconds, refused)


def _differs(kernel: str, given: tuple, expected, actual) -> dict[str, str]:
    if kernel == "topk_per_row":  # which of equal entries are taken may differ
        both = ((value_BK, given[0].gather(1, index_BK)) for value_BK, index_BK in (expected, actual))
        expected, actual = (torch.stack(pair).sort(dim=2).values for pair in both)
    error = float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-30))
    return {} if error <= TOLERANCE else {kernel: f"it differs by {error:.1e}"}


def _seconds(call: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """The least time of a call."""
    times = []
    for _ in range(REPEATS):
        synchronize()
        began = time.perf_counter()
        call()
        synchronize()
        times.append(time.perf_counter() - began)
    return min(times)
