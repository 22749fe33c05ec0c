"""A writer of shards that is killed loses at most the shard that it was writing."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import processes
from helpers import HOOK, documents, write_set, writer

from lensae.core.paths import read_set
from lensae.store.verify import verify


def write_small_shards(folder: str, started: str) -> None:
    """Write the rest of 1,500 documents; the file `started` says that it has begun."""
    with writer(Path(folder), shard_rows=32) as open_writer:
        Path(started).touch()
        for one in documents(1500)[open_writer.documents_done :]:
            open_writer.append(one)
        open_writer.finish()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.001)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def test_a_killed_writer_loses_at_most_its_shard(folder, store, tmp_path):
    """SIGKILL at 50 instants; the next run adopts what is whole and clears away what is not."""
    write_set(store / "whole" / HOOK, documents(1500), shard_rows=32)
    random, kills = np.random.default_rng(0), 0
    for number in range(50):
        started = tmp_path / f"started-{number}"
        process = processes.Command(write_small_shards, str(folder), str(started))
        wait_for(started)
        process.process.join(random.uniform(0.002, 0.06))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        processes.end_all()
    write_small_shards(str(folder), str(tmp_path / "last"))
    assert kills > 10
    assert shard_bytes(folder) == shard_bytes(store / "whole" / HOOK)
    assert not [fault for _file, faults in verify(read_set(folder)) for fault in faults]
