"""The processes that torchrun started, as one piece of work sees them; a single process is rank 0 of 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from lensae.sae.world import World

PATIENCE = timedelta(days=7)  # how long a fast process waits for a slow one


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them; `local` numbers it on its own machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one process that speaks, and writes what all share."""
        return self.rank == 0

    @property
    def device(self) -> str | None:
        """The GPU of this process, or None: whatever there is."""
        import torch

        return f"cuda:{self.local}" if self.world > 1 and torch.cuda.is_available() else None

    def wait(self) -> None:
        """Go on when every process has come this far."""
        if self.world > 1:
            import torch.distributed as distributed

            distributed.barrier()


def current() -> Ranks:
    """What torchrun says of this process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, world, local = (int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0), strict=True))
    return Ranks(rank, world, local)


def leave() -> NoReturn:
    """End this process, one of several that are done, at once.

    Taking the interpreter down while threads of torch.distributed are about has aborted such a process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def joined(tensors: bool = False) -> Iterator[Ranks]:
    """The processes of this run, able to wait for one another (over gloo) until the end.

    With `tensors` they exchange those on GPUs too, over nccl.
    """
    ranks = current()
    if ranks.world == 1:
        yield ranks
        return
    import torch.distributed as distributed

    backend = "gloo"
    if tensors and ranks.device:
        import torch

        torch.cuda.set_device(ranks.local)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()


@contextmanager
def trained_together(by_feature: bool = False) -> Iterator[World]:
    """The processes of this run as a training sees them: they divide the rows, or with `by_feature` the features."""
    from lensae.sae.world import World

    with joined(tensors=True) as ranks:
        yield World(ranks.rank, ranks.world, by_feature)
