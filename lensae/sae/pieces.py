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

from lensae.durable import new_file
from lensae.sae.world import World

NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write(
    path: Path, tensors: dict[str, torch.Tensor], shared: Callable[[str], bool], metadata: dict, world: World
) -> None:
    """Write, in the first process, what all hold: of a tensor that is not `shared` the parts of all along its first
    dimension. All processes call it with the same names in the same order."""
    lengths = [len(tensor) for name, tensor in tensors.items() if not shared(name)]
    every = iter(torch.stack(world.gather(torch.tensor([lengths]))).view(world.size, -1).T.tolist())
    counts = {name: None if shared(name) else next(every) for name in tensors}
    if not world.first:
        for name, tensor in tensors.items():
            if not shared(name):
                world.send(tensor)
        return
    with new_file(path) as partial, open(partial, "wb") as file:
        file.write(_header(tensors, counts, metadata))
        for name, tensor in tensors.items():
            file.write(_bytes(tensor))
            for rank, count in enumerate(counts[name] or []):
                if rank:
                    file.write(_bytes(world.receive(tensor.new_empty(count, *tensor.shape[1:]), rank)))


def _header(tensors: dict[str, torch.Tensor], counts: dict[str, list[int] | None], metadata: dict) -> bytes:
    header, end = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        shape = list(tensor.shape) if counts[name] is None else [sum(counts[name]), *tensor.shape[1:]]
        start, end = end, end + torch.Size(shape).numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
