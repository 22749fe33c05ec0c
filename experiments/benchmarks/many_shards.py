"""What a shard costs beside its rows when a set has thousands: made-up documents of two tokens, a shard each.

A set of 10,000 real shards holds some 3e8 rows; these are as many shards of two rows. Reported by tenth of the run:
  ms a shard           wall time, writing and fsync of the shard included
  bookkeeping bytes    written for each shard beside the shard itself (Linux counts them)
and the seconds of what is done once: finishing the pass, writing view.h5, reading the manifest.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from lensae.core.manifest import ModelRecord
from lensae.core.paths import read_set
from lensae.core.records import CapturedDocument
from lensae.store.view import write_view
from lensae.store.writer import SetWriter, header

HOOK, WIDTH, ROWS = "blocks.0.hook_resid_post", 16, 2


def document(number: int) -> CapturedDocument:
    """A document of two tokens."""
    random = np.random.default_rng(number)
    position = np.arange(ROWS)
    return CapturedDocument(
        text="a b ",
        prompt="",
        label="",
        input_ids=position,
        token_id=position,
        position=position,
        origin=np.zeros(ROWS, np.uint8),
        char_start=2 * position,
        char_end=2 * position + 2,
        activations={HOOK: random.normal(size=(ROWS, WIDTH)).astype(np.float32)},
    )


def measured(shards: int) -> dict:
    """The costs of a set of `shards` shards, which is written to a temporary folder."""
    documents = [document(number) for number in range(100)]
    model = ModelRecord(name="made-up", path="", weights_sha256="", tokenizer_sha256="")
    about = header(model, HOOK, WIDTH, "float16", {})
    tenth, lines = max(1, shards // 10), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "made-up" / HOOK
        with SetWriter(folder, about, {}, "bench", shard_rows=1) as writer:
            for first in range(0, shards, tenth):
                started, written = time.perf_counter(), written_bytes()
                for number in range(first, min(first + tenth, shards)):
                    writer.append(documents[number % len(documents)])
                writer.flush()
                seconds, done = time.perf_counter() - started, writer.manifest.shards[first:]
                bookkeeping = written_bytes() - written - sum(shard.bytes for shard in done)
                lines.append({"ms": seconds / len(done) * 1e3, "bookkeeping_bytes": bookkeeping / len(done)})
            finish_s = timed(writer.finish)
        entry = read_set(folder)
        once = {"finish_s": finish_s, "view_s": timed(lambda: write_view(entry))}
        once["read_manifest_s"] = timed(lambda: read_set(folder))
        size = (folder / "manifest.json").stat().st_size
        return {"shards": shards, "tenths": lines, **once, "manifest_bytes": size}


def written_bytes() -> int:
    """Bytes that this process has written so far (0 where the system does not count them)."""
    counters = psutil.Process().io_counters() if hasattr(psutil.Process, "io_counters") else None
    return getattr(counters, "write_chars", 0)


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def show(entry: dict) -> None:
    """A table of the tenths, and what is done once."""
    table = Table(title=f"{entry['shards']:,} shards of {ROWS} rows", box=None)
    for name in ("tenth of the run", "ms a shard", "bookkeeping bytes a shard"):
        table.add_column(name, justify="right")
    for number, line in enumerate(entry["tenths"], 1):
        table.add_row(str(number), f"{line['ms']:.2f}", f"{line['bookkeeping_bytes']:,.0f}")
    console = Console(width=110)
    console.print(table)
    console.print(
        f"once: finish {entry['finish_s']:.2f} s, view.h5 {entry['view_s']:.1f} s, "
        f"reading the manifest ({entry['manifest_bytes'] / 1e6:.1f} MB) {entry['read_manifest_s']:.2f} s"
    )
