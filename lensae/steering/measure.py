"""The effect of an edit on next-token distributions.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import math

import torch


def kl(logp_TV: torch.Tensor, logq_TV: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats at each token (T,)."""
    return (logp_TV.exp() * (logp_TV - logq_TV)).sum(-1)


def cross_entropy(logp_TV: torch.Tensor, target_T: torch.Tensor) -> torch.Tensor:
    """-log p of each target in nats (T,)."""
    return -logp_TV.gather(-1, target_T[:, None])[:, 0]


def perplexity(cross_entropies: list[float]) -> float:
    """exp of the mean; nan for no tokens at all."""
    return math.exp(min(sum(cross_entropies) / len(cross_entropies), 700)) if cross_entropies else math.nan


def recovered(clean: float, edited: float, zero: float) -> float:
    """(zero - edited) / (zero - clean): 1 when the edit costs nothing, 0 when it is as bad as zeros."""
    return (zero - edited) / (zero - clean) if zero != clean else math.nan
