"""Tensors divided over processes, written to one safetensors file as if a single process had written it.

The first process writes what the others send and holds one process's slice of one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from lensae.core.durable import new_file
from lensae.core.safetensors_header import TensorInfo, header_bytes
from lensae.sae.distributed.process_group import ProcessGroup


def write(
    path: Path | None,
    tensors: dict[str, torch.Tensor],
    sharded_dim: Callable[[str], int | None],
    metadata: dict[str, str],
    group: ProcessGroup,
) -> None:
    """Write the tensors of all processes to `path`, which the first process alone needs, as it alone writes.

    `sharded_dim(name)` is the dimension along which a tensor is divided, 0 or 1, or None where every process has the
    whole tensor. All processes call this with the same names in the same order.
    """
    dims = {name: sharded_dim(name) for name in tensors}
    lengths = [_length(tensor, dims[name]) for name, tensor in tensors.items()]
    gathered = torch.cat(group.all_gather(torch.tensor([lengths]))).tolist()  # (processes, tensors)
    lengths_by_rank = dict(zip(tensors, zip(*gathered, strict=True), strict=True))
    if not group.is_first:
        for name, tensor in tensors.items():
            if dims[name] is not None:
                group.send(tensor)
        return
    infos = {
        name: TensorInfo(
            str(tensor.dtype).removeprefix("torch."), _resized(tensor.shape, dims[name], sum(lengths_by_rank[name]))
        )
        for name, tensor in tensors.items()
    }
    assert path is not None, "the first process needs the path"
    with new_file(path) as partial, open(partial, "wb") as file:
        file.write(header_bytes(infos, metadata))
        for name, tensor in tensors.items():
            dim = dims[name]
            if dim is None:
                file.write(_bytes(tensor))
            else:
                _write_slices(file, tensor, dim, lengths_by_rank[name], group)


def _length(tensor: torch.Tensor, dim: int | None) -> int:
    return 0 if dim is None else tensor.shape[dim]


def _write_slices(
    file: BinaryIO, tensor: torch.Tensor, dim: int, lengths: tuple[int, ...], group: ProcessGroup
) -> None:
    """One tensor, from this process's slice and those that are received; `lengths` are those of all ranks."""
    start, written = file.tell(), 0
    rows = tensor.shape[0] if dim else 1
    row_bytes = _resized(tensor.shape, dim, sum(lengths)).numel() // rows * tensor.element_size()
    for rank, length in enumerate(lengths):
        received = group.receive(tensor.new_empty(_resized(tensor.shape, dim, length)), rank) if rank else tensor
        data = _bytes(received)
        size = len(data) // rows
        for row in range(rows):
            file.seek(start + row * row_bytes + written)
            file.write(data[row * size : (row + 1) * size])
        written += size
    file.seek(start + rows * row_bytes)


def _resized(shape: torch.Size, dim: int | None, length: int) -> torch.Size:
    """The shape with `length` in dimension `dim`."""
    return shape if dim is None else torch.Size([*shape[:dim], length, *shape[dim + 1 :]])


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
