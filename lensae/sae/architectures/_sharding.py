"""The features of a trainer that one process has, and what it computes with the other processes.

Shapes: B rows, D d_model, F features of this process; X is any shape.
"""

from __future__ import annotations

import torch
from torch import nn

from lensae.sae import kernels
from lensae.sae.architectures._dead_features import DeadFeatures
from lensae.sae.distributed.process_group import ProcessGroup

BLOCK = 1024


def random_rows(count: int, width: int, own_features: slice) -> torch.Tensor:
    """The rows `own_features` of torch.randn(count, width); the others are drawn too, but not all kept at once."""
    if own_features == slice(0, count):
        return torch.randn(count, width)
    kept = torch.empty(own_features.stop - own_features.start, width)
    starts = range(0, max(count - BLOCK, 0) + 1, BLOCK)  # torch draws a short rest differently: the last has it
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        drawn = torch.randn(stop - start, width)
        first, last = max(start, own_features.start), min(stop, own_features.stop)
        if first < last:
            kept[first - own_features.start : last - own_features.start] = drawn[first - start : last - start]
    return kept


class ShardedModule(nn.Module):
    """The features of a trainer that one process has (`own_features`); a single process has them all."""

    d_sae: int
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    dead: DeadFeatures
    shared: tuple[str, ...] = ("b_dec", "centre")  # the tensors that are not made of one row, or number, per feature

    def __init__(self, d_sae: int, group: ProcessGroup) -> None:
        super().__init__()
        self.group, self.own_features = group, group.feature_range(d_sae)

    def is_shared(self, name: str) -> bool:
        """Whether every process holds the whole of this parameter or buffer."""
        return not self.group.splits_features or name.rpartition(".")[2] in self.shared

    @property
    def finite(self) -> bool:
        """Whether every weight is a number."""
        finite = all(bool(torch.isfinite(p).all()) for p in self.parameters())
        return not self.group.any(not finite)[0] if self.group.splits_features else finite

    @property
    def all_dead(self) -> bool:
        """Whether there is no feature that is not dead."""
        return self.group.count_features(int((~self.dead.mask_F).sum())) == 0

    def silent_share(self, rows: int) -> float:
        """The share of features that have not fired on the last `rows` training rows."""
        return self.group.count_features(int((self.dead.silent_F >= max(rows, 1)).sum())) / self.d_sae

    def count_firing(self, features: kernels.Features) -> None:
        """Count a batch in: which features fired."""
        self.dead.update(self.group.sum_over_rows(features.count_F()), self.group.count_rows(features.shape[0]))

    def mean_per_row(self, value_X: torch.Tensor, rows: int) -> torch.Tensor:
        """The sum of values of features, per row of the whole batch; `rows` are here."""
        return self.group.sum_over_processes(value_X.sum()) / self.group.count_rows(rows)

    def decode(self, features: kernels.Features, frozen: bool = False) -> torch.Tensor:
        """The reconstruction (B, D); from `frozen` weights, which do not learn from it."""
        W_FD, b_D = self.W_dec, self.b_dec
        if frozen:
            W_FD, b_D = W_FD.detach(), b_D.detach()
        if not self.group.splits_features:
            return kernels.decode(features, W_FD, b_D)
        return self.group.sum_over_processes(kernels.decode(features, W_FD)) + self.group.counted_once(b_D)

    @torch.no_grad()
    def share_gradients(self) -> None:
        """After the backward pass: make the gradients of what all processes hold those of the whole batch."""
        for name, parameter in self.named_parameters() if self.group.size > 1 else ():
            if self.group.splits_rows or self.is_shared(name):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.group.all_reduce(parameter.grad)

    @torch.no_grad()
    def clip_gradients(self, most: float) -> None:
        """Scale all gradients by one factor, so that their norm over all processes is at most `most`."""
        if not self.group.splits_features:
            grads = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm(grads)
            if norm > most:  # else their memory need not be gone through
                nn.utils.clip_grads_with_norm_(self.parameters(), most, norm)
            return
        own = shared = torch.zeros(())
        for name, parameter in self.named_parameters():
            square = parameter.new_zeros(()) if parameter.grad is None else parameter.grad.square().sum()
            own, shared = (own, shared + square) if self.is_shared(name) else (own + square, shared)
        factor = (most / ((self.group.sum_over_processes(own) + shared).sqrt() + 1e-6)).clamp(max=1.0)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
