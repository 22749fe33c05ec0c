"""Tensors that processes hold in parts, in one safetensors file, as if a single process had written it.

The file is an eight-byte length, a JSON header and the tensors' bytes, one after the other
(https://huggingface.co/docs/safetensors), so that the first process can write what it is sent and hold one part of one
tensor at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from lensae.core.durable import new_file
from lensae.sae.distributed.process_group import ProcessGroup

NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write(
    path: Path | None,
    tensors: dict[str, torch.Tensor],
    along: Callable[[str], int | None],
    metadata: dict,
    group: ProcessGroup,
) -> None:
    """Write what all processes hold; the first one does, and only it needs the path.

    `along(name)` is the dimension along which a tensor's parts are put together, 0 or 1, or None where all hold the
    whole. All processes call this with the same names in the same order.
    """
    lengths = [0 if along(name) is None else tensor.shape[along(name)] for name, tensor in tensors.items()]
    counts = dict(
        zip(tensors, zip(*torch.cat(group.all_gather(torch.tensor([lengths]))).tolist(), strict=True), strict=True)
    )
    if not group.is_first:
        for name, tensor in tensors.items():
            if along(name) is not None:
                group.send(tensor)
        return
    shapes = {name: _whole(tensor.shape, along(name), sum(counts[name])) for name, tensor in tensors.items()}
    with new_file(path) as partial, open(partial, "wb") as file:
        file.write(_header(tensors, shapes, metadata))
        for name, tensor in tensors.items():
            if along(name) is None:
                file.write(_bytes(tensor))
            else:
                _write_parts(file, tensor, along(name), counts[name], group)


def _write_parts(file, tensor: torch.Tensor, along: int, counts: tuple[int, ...], group: ProcessGroup) -> None:
    """One tensor, from its own part and those that are sent."""
    start, done = file.tell(), 0
    rows = tensor.shape[0] if along else 1
    step = _whole(tensor.shape, along, sum(counts)).numel() // rows * tensor.element_size()
    for rank, count in enumerate(counts):
        part = group.receive(tensor.new_empty(_whole(tensor.shape, along, count)), rank) if rank else tensor
        data = _bytes(part)
        size = len(data) // rows
        for row in range(rows):
            file.seek(start + row * step + done)
            file.write(data[row * size : (row + 1) * size])
        done += size
    file.seek(start + rows * step)


def _whole(shape: torch.Size, along: int | None, count: int) -> torch.Size:
    return shape if along is None else torch.Size([*shape[:along], count, *shape[along + 1 :]])


def _header(tensors: dict[str, torch.Tensor], shapes: dict[str, torch.Size], metadata: dict) -> bytes:
    header, end = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        start, end = end, end + shapes[name].numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
