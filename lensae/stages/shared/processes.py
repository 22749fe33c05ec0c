"""The processes that torchrun started for one command; without torchrun, rank 0 of 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from lensae.core.device import current_device

if TYPE_CHECKING:
    from lensae.sae.distributed.process_group import ProcessGroup

PATIENCE = timedelta(days=7)  # how long a fast process waits for a slow one


@dataclass(frozen=True)
class Process:
    """This process among `world_size` of them; `local_rank` numbers it on its own machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process reports, and writes the shared files."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """The device of this process: of several on a machine with GPUs each has its own."""
        device = current_device()
        return f"cuda:{self.local_rank}" if self.world_size > 1 and device == "cuda" else device

    def barrier(self) -> None:
        """Wait until every process has reached this call."""
        if self.world_size > 1:
            import torch.distributed as distributed

            distributed.barrier()


def current() -> Process:
    """This process, from the environment variables that torchrun sets."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, world_size, local_rank = (
        int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0), strict=True)
    )
    return Process(rank, world_size, local_rank)


def leave() -> NoReturn:
    """End this process, one of several that have finished, at once.

    Shutting the interpreter down while threads of torch.distributed run has aborted such processes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def process_group(tensors: bool = False) -> Iterator[Process]:
    """The processes of this run, connected over gloo so that they can wait for one another.

    With `tensors` they exchange those on GPUs too, over nccl.
    """
    process = current()
    if process.world_size == 1:
        yield process
        return
    import torch.distributed as distributed

    backend = "gloo"
    if tensors and process.device.startswith("cuda"):
        import torch

        torch.cuda.set_device(process.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield process
    finally:
        distributed.destroy_process_group()


@contextmanager
def training_group(by_feature: bool = False) -> Iterator[ProcessGroup]:
    """The process group of a training: the processes divide the rows, or with `by_feature` the features."""
    from lensae.sae.distributed.process_group import ProcessGroup

    with process_group(tensors=True) as process:
        yield ProcessGroup(process.rank, process.world_size, by_feature)
