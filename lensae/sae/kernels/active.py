"""Features of a batch, kept sparse or dense behind one interface.

Shapes: B rows, F features, N active pairs of a row and a feature, in order of rows; a 1 behind a letter is one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Columns:
    """The active pairs in order of features: pair `order_N[i]` of row `row_N[i]` belongs to the feature whose range
    in `indptr_F1` holds i."""

    indptr_F1: torch.Tensor
    row_N: torch.Tensor
    order_N: torch.Tensor


@dataclass(frozen=True)
class Pattern:
    """Which features are active in which rows: row b has the features index_N[indptr_B1[b] : indptr_B1[b + 1]]."""

    indptr_B1: torch.Tensor
    index_N: torch.Tensor
    d_sae: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.indptr_B1) - 1

    @cached_property
    def row_N(self) -> torch.Tensor:
        """The row of each pair."""
        rows_B = torch.arange(self.rows, device=self.index_N.device)
        return torch.repeat_interleave(rows_B, self.indptr_B1.diff(), output_size=len(self.index_N))

    @cached_property
    def columns(self) -> Columns:
        """The same pairs by feature (computed once, used by the gradients of encoder and decoder)."""
        order_N = self.index_N.to(torch.int32).sort(stable=True).indices
        count_F = torch.bincount(self.index_N, minlength=self.d_sae)
        return Columns(torch.nn.functional.pad(count_F.cumsum(0), (1, 0)), self.row_N[order_N], order_N)

    def sums_F(self, value_N: torch.Tensor) -> torch.Tensor:
        """The sum of each feature's pairs (F,)."""
        if value_N.is_cuda:
            return sums_in_order(self.columns, value_N)
        if value_N.device.type == "mps":
            return value_N.new_zeros(self.d_sae).index_add_(0, self.index_N, value_N)
        return torch.bincount(self.index_N, value_N, minlength=self.d_sae).to(value_N.dtype)


def sums_in_order(columns: Columns, value_N: torch.Tensor) -> torch.Tensor:
    """The sum of each feature's pairs (F,), in their order: bincount has none on CUDA devices."""
    return torch.segment_reduce(value_N[columns.order_N], "sum", offsets=columns.indptr_F1)


class _PerPair(torch.autograd.Function):
    """A value of each feature, repeated for each of its pairs; the gradient is a sum over pairs."""

    @staticmethod
    def forward(ctx, p_F, pattern: Pattern):
        ctx.pattern = pattern
        return p_F[pattern.index_N]

    @staticmethod
    def backward(ctx, grad_N):
        return ctx.pattern.sums_F(grad_N), None


@dataclass(frozen=True)
class Active:
    """Sparse features (B, F): a pattern and the value of each of its pairs (a value may be zero)."""

    pattern: Pattern
    value: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(B, F)."""
        return self.pattern.rows, self.pattern.d_sae

    def with_value(self, value_N: torch.Tensor) -> Active:
        """The same pairs with other values."""
        return Active(self.pattern, value_N)

    def per_pair(self, p_F: torch.Tensor) -> torch.Tensor:
        """A parameter of the features, spread so that it meets `value` (N,)."""
        return _PerPair.apply(p_F, self.pattern)

    def dense(self) -> torch.Tensor:
        """The matrix (B, F)."""
        zeros = self.value.new_zeros(self.shape)
        return zeros.index_put((self.pattern.row_N, self.pattern.index_N), self.value)

    def count_F(self) -> torch.Tensor:
        """On how many rows each feature is above zero (F,) int64."""
        return torch.bincount(self.pattern.index_N[self.value.detach() > 0], minlength=self.pattern.d_sae)

    def fires(self) -> torch.Tensor:
        """The pairs above zero (N,) int64, each as row * F + feature."""
        return (self.pattern.row_N * self.pattern.d_sae + self.pattern.index_N)[self.value.detach() > 0]

    def split_at(self, bounds: list[int]) -> Active:
        """The pairs regrouped by the range of features they fall in: row g * B + b holds row b's features of
        [bounds[g], bounds[g + 1])."""
        pattern, groups = self.pattern, len(bounds) - 1
        edges = torch.tensor(bounds[1:-1], device=pattern.index_N.device)
        row_N = torch.bucketize(pattern.index_N, edges, right=True) * pattern.rows + pattern.row_N
        order_N = row_N.to(torch.int32).sort(stable=True).indices
        count = torch.bincount(row_N, minlength=groups * pattern.rows)
        regrouped = Pattern(torch.nn.functional.pad(count.cumsum(0), (1, 0)), pattern.index_N[order_N], pattern.d_sae)
        return Active(regrouped, self.value[order_N])


@dataclass(frozen=True)
class Dense:
    """Dense features: the matrix itself (B, F)."""

    value: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(B, F)."""
        rows, features = self.value.shape
        return rows, features

    def with_value(self, value_BF: torch.Tensor) -> Dense:
        """Other values."""
        return Dense(value_BF)

    def per_pair(self, p_F: torch.Tensor) -> torch.Tensor:
        """A parameter of the features, as it is: it meets `value` by broadcasting."""
        return p_F

    def dense(self) -> torch.Tensor:
        """The matrix (B, F)."""
        return self.value

    def count_F(self) -> torch.Tensor:
        """On how many rows each feature is above zero (F,) int64."""
        return (self.value.detach() > 0).sum(0)

    def fires(self) -> torch.Tensor:
        """The pairs above zero (N,) int64, each as row * F + feature."""
        return (self.value.detach() > 0).view(-1).nonzero().view(-1)


Features = Active | Dense
