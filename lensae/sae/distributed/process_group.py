"""The processes that train one SAE together: what each of them has, and how they compute figures over all of them.

Rows are divided (each process learns from rows rank::size of a batch) or features are (each has a range of them, and
sees every row). A loss made of `sum_over_processes` has the same value in every process, and its gradient in each is
that of the process's own term, so that gradients of parameters that all processes have are to be summed.

Shapes: B rows of this process, D d_model, N entries; D stands for any width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from lensae.core.errors import LensaeError, OtherProcessEnded

T = TypeVar("T")
END = object()


class _Sum(torch.autograd.Function):
    """The sum over processes; the gradient goes to the own term alone."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        return group.all_reduce(own.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


@dataclass(frozen=True)
class ProcessGroup:
    """This process among `size`; a single one has all rows and all features."""

    rank: int = 0
    size: int = 1
    by_feature: bool = False

    @property
    def is_single(self) -> bool:
        """Whether there is only this process."""
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def splits_rows(self) -> bool:
        """Whether each process sees other rows."""
        return self.size > 1 and not self.by_feature

    @property
    def splits_features(self) -> bool:
        """Whether each process has other features."""
        return self.size > 1 and self.by_feature

    def feature_range(self, d_sae: int) -> slice:
        """The features of this process."""
        if not self.splits_features:
            return slice(0, d_sae)
        return slice(d_sae * self.rank // self.size, d_sae * (self.rank + 1) // self.size)

    # Figures.

    def sum_over_processes(self, own: torch.Tensor) -> torch.Tensor:
        """The sum over all processes; the gradient goes to the own term alone."""
        if self.is_single:
            return own
        return _Sum.apply(own, self) if own.requires_grad else self.all_reduce(own.clone())

    def sum_over_rows(self, own: torch.Tensor) -> torch.Tensor:
        """The sum over the processes' rows."""
        return self.sum_over_processes(own) if self.splits_rows else own

    def sum_over_features(self, own: torch.Tensor) -> torch.Tensor:
        """The sum over the processes' features."""
        return self.sum_over_processes(own) if self.splits_features else own

    def counted_once(self, shared: torch.Tensor) -> torch.Tensor:
        """A parameter that all processes have and compute the same with: only one of them has its gradient."""
        return shared.detach() if self.splits_features and not self.is_first else shared

    def count_rows(self, count: int) -> int:
        """How many rows all processes have together."""
        return int(self.sum_over_processes(torch.tensor(count))) if self.splits_rows else count

    def count_features(self, count: int) -> int:
        """How many features all processes have together."""
        return int(self.sum_over_processes(torch.tensor(count))) if self.splits_features else count

    def mean_over_rows(self, value_BD: torch.Tensor) -> torch.Tensor:
        """The mean over the rows of all processes."""
        if not self.splits_rows:
            return value_BD.mean(0)
        sums = self.sum_over_processes(torch.cat([value_BD.sum(0).view(-1), value_BD.new_tensor([len(value_BD)])]))
        return (sums[:-1] / sums[-1]).view(value_BD.shape[1:])

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether it is set in some process."""
        if self.is_single:
            return flags
        return tuple((self.all_reduce(torch.tensor(flags, dtype=torch.int64)) > 0).tolist())

    def barrier(self) -> None:
        """Wait until every process has come this far."""
        self.any(False)

    # Rows.

    def own_rows(self, whole_BD: torch.Tensor) -> torch.Tensor:
        """This process's rows of a batch."""
        return whole_BD[self.rank :: self.size] if self.splits_rows else whole_BD

    def own_row_count(self, first: int) -> int:
        """How many of the first rows of a batch are this process's."""
        return len(range(self.rank, first, self.size)) if self.splits_rows else first

    def gather_rows(self, own_BD: torch.Tensor) -> torch.Tensor:
        """The batch that the rows of all processes belong to."""
        if not self.splits_rows:
            return own_BD
        gathered = self.all_gather(own_BD)
        whole_BD = own_BD.new_empty(sum(map(len, gathered)), *own_BD.shape[1:])
        for rank, rows_BD in enumerate(gathered):
            whole_BD[rank :: self.size] = rows_BD
        return whole_BD

    # Exchange. What a process does here, all do, in the same order.

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself, after it has become the sum over processes."""
        self._call(distributed.all_reduce, tensor)
        return tensor

    def all_gather(self, own_ND: torch.Tensor) -> list[torch.Tensor]:
        """What every process has, the first dimension of which may differ."""
        if self.is_single:
            return [own_ND]
        gathered = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._call(distributed.all_gather, gathered, torch.tensor([len(own_ND)]))
        counts = [int(count) for count in gathered]
        padded_ND = own_ND.new_zeros(max(counts), *own_ND.shape[1:])
        padded_ND[: len(own_ND)] = own_ND
        parts = [torch.empty_like(padded_ND) for _ in counts]
        if max(counts):
            self._call(distributed.all_gather, parts, padded_ND)
        return [rows_ND[:count] for rows_ND, count in zip(parts, counts, strict=True)]

    def send(self, tensor: torch.Tensor) -> None:
        """Send a tensor to the first process, which receives it."""
        self._call(distributed.send, tensor.detach().contiguous(), 0)

    def receive(self, tensor: torch.Tensor, rank: int) -> torch.Tensor:
        """The tensor itself, filled with what process `rank` sends."""
        self._call(distributed.recv, tensor, rank)
        return tensor

    def same(self, *tensors: torch.Tensor) -> None:
        """Overwrite tensors with what the first process has."""
        for tensor in tensors if self.size > 1 else ():
            values = tensor.detach().contiguous()
            self._call(distributed.broadcast, values, 0)
            tensor.detach().copy_(values)

    def broadcast_text(self, text: str) -> str:
        """The text that the first process has."""
        return self._all_texts(text)[0] if self.size > 1 else text

    def collectively(self, work: Callable[[], T]) -> T:
        """The result of the work; when it fails in one process it fails in all, and the first one reports why."""
        if self.is_single:
            return work()
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        failures = [json.loads(text) for text in self._all_texts(_described(error)) if text]
        if not failures:
            return cast(T, result)
        first = failures[0]
        if not self.is_first:
            raise OtherProcessEnded(first["status"]) from error
        raise error or _kind(first["kind"])(first["what"], first["hint"])

    def batches(self, source: Iterable[T]) -> Iterator[T]:
        """The items of a source, which is to be as long in every process, got together."""
        if self.is_single:
            yield from source
            return
        items = iter(source)
        while (item := self.collectively(lambda: next(items, END))) is not END:
            yield cast(T, item)

    def _all_texts(self, text: str) -> list[str]:
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        return [bytes(characters.tolist()).decode() for characters in self.all_gather(data)]

    def _call(self, collective: Callable[..., object], *arguments: object) -> None:
        try:
            collective(*arguments)
        except RuntimeError as error:
            raise OtherProcessEnded from error


SINGLE_PROCESS = ProcessGroup()


def _described(error: Exception | None) -> str:
    if error is None:
        return ""
    what = getattr(error, "what", f"{type(error).__name__}: {error}")
    status = getattr(error, "exit_status", 1)
    return json.dumps(
        {"kind": type(error).__name__, "what": what, "hint": getattr(error, "hint", ""), "status": status}
    )


def _kind(name: str) -> type[LensaeError]:
    """The error of that name; LensaeError for any other kind."""
    kinds = [LensaeError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next((kind for kind in kinds if kind.__name__ == name and kind is not OtherProcessEnded), LensaeError)
