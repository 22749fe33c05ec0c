"""float32 products on CPUs: the faster library where it is as exact, and never where it is slower."""

from __future__ import annotations

from contextlib import contextmanager

import torch

ATTENTION = "sdpa_lensae"


@contextmanager
def fast_matmul():
    """float32 products through oneDNN where that is as exact (about twice as fast on CPUs as the default).

    PyTorch's name for it, precision "medium", lets some machines compute in bfloat16 instead; a small product tells
    whether this one does, and then the default stays. The setting is restored on exit.
    """
    with _precision(torch.get_float32_matmul_precision()):
        if not torch.cuda.is_available():
            _use_medium_if_exact()
        yield


@contextmanager
def _precision(value: str):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _use_medium_if_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    if float((a @ b - exact).norm() / exact.norm()) > 1e-5:
        torch.set_float32_matmul_precision(before)


def use_plain_products_in_attention(network) -> None:
    """Keep attention's many tiny products on the default library: one decoding step of 64 ragged sequences spends
    ten times as long in attention when they go through oneDNN as well.

    It does nothing for a model whose attention is not transformers' sdpa.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(*args, **kwargs):
        with _precision("highest"):
            return sdpa_attention_forward(*args, **kwargs)

    if network.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        network.set_attn_implementation(ATTENTION)
