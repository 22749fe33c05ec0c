"""How activations lie on disk best: chunk sizes and compression, on real ones. `make bench-store` runs it.

One shard of about 32 MiB (smollm2-135m, block 15) as float16 and as float32, Fletcher-32 always on, one thread:
  bytes     on disk for a token's activations, and their share of what they take without a filter
  write     MB/s of activations into an HDF5 file in memory, as a shard is made
  read      MB/s of a file in the page cache, chunk after chunk
  shuffle   MB/s into shuffled float32 windows of 16,384 rows, chunks drawn at random, as training reads
  row       ms for one row at a random place
Medians over interleaved repeats. Then the costs of a shard in a set of 10,000 (many_shards.py), which needs no model:
`--shards-only` measures nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import many_shards
import numpy as np
import texts
from rich.console import Console
from rich.table import Table

from lensae.core.durable import write_json
from lensae.core.paths import find_set
from lensae.stages.collect.run import CollectOptions, collect
from lensae.store.memory_file import MemoryFile
from lensae.store.reader import SetReader
from lensae.store.writer import default_shard_rows

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHUNK_ROWS = (128, 256, 512, 1024, 2048, 4096)
WINDOW_ROWS = 16_384
SINGLE_ROWS = 40
FILTERS: dict[str, dict] = {
    "none": {},
    "gzip-1, shuffle": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "lz4": dict(hdf5plugin.LZ4()),
    "lz4, shuffle": {**hdf5plugin.LZ4(), "shuffle": True},
    "lz4, bitshuffle": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "zstd-1, shuffle": {**hdf5plugin.Zstd(clevel=1), "shuffle": True},
    "zstd-1, bitshuffle": dict(hdf5plugin.Bitshuffle(cname="zstd", clevel=1)),
    "blosc2 lz4-5, shuffle": dict(hdf5plugin.Blosc2(cname="lz4", clevel=5, filters=hdf5plugin.Blosc2.SHUFFLE)),
    "blosc2 lz4-5, bitshuffle": dict(hdf5plugin.Blosc2(cname="lz4", clevel=5, filters=hdf5plugin.Blosc2.BITSHUFFLE)),
    "blosc2 zstd-1, shuffle": dict(hdf5plugin.Blosc2(cname="zstd", clevel=1, filters=hdf5plugin.Blosc2.SHUFFLE)),
}


def main() -> None:
    """Run everything, print the tables, write results/storage.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--shards-only", action="store_true")
    texts.add_option(parser)
    options = parser.parse_args()
    path = HERE / "results" / "storage.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    if not options.shards_only:
        results = formats(activations(options.corpus, options.tokens), options.repeats)
    results["many_shards"] = many_shards.measured(options.shards)
    many_shards.show(results["many_shards"])
    write_json(path, results)


def formats(acts_TD: np.ndarray, repeats: int) -> dict:
    """Every filter and chunk size, for both types."""
    facts = {"machine": platform.machine(), "cores": os.cpu_count(), "h5py": h5py.__version__}
    facts |= {"hdf5": h5py.version.hdf5_version, "hdf5plugin": hdf5plugin.version, "hook": texts.HOOK}
    results: dict = {"about": facts}
    for dtype in ("float16", "float32"):
        rows = min(len(acts_TD), default_shard_rows(acts_TD.shape[1], dtype))
        results[dtype] = table_of(acts_TD[:rows].astype(dtype), repeats)
        show(f"{rows:,} tokens, {dtype}", results[dtype])
    return results


def activations(corpus: str | None, tokens: int) -> np.ndarray:
    """Real activations (T, D) float32 of the embedded model, T about `tokens`."""
    with tempfile.TemporaryDirectory() as folder, texts.store_at(Path(folder)):
        path = Path(folder) / "texts.jsonl"
        lines = (json.dumps({"text": text}) + "\n" for text in texts.texts_of(corpus))
        path.write_text("".join(lines), encoding="utf-8")
        options = {"corpus": str(path), "generate": False, "dtype": "float32", "max_tokens": tokens, "name": "texts"}
        collect(CollectOptions(hooks=(texts.HOOK,), **options), "bench")
        reader = SetReader(find_set("texts"))
        return np.concatenate(list(reader.document_rows(reader.everything())))


def table_of(acts_TD: np.ndarray, repeats: int) -> list[dict]:
    """One entry for each filter and chunk size; the runs of the settings are interleaved, `repeats` times over."""
    settings = [(name, rows) for name in FILTERS for rows in CHUNK_ROWS]
    seconds: dict[tuple, list[dict]] = {setting: [] for setting in settings}
    size: dict[tuple, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.h5"
        for repeat in range(repeats + 1):
            for setting in settings[:: -1 if repeat % 2 else 1]:
                size[setting], taken = measured(path, acts_TD, *setting)
                if repeat:  # the first round does not count
                    seconds[setting].append(taken)
    return [entry(acts_TD, *setting, size[setting], seconds[setting]) for setting in settings]


def measured(path: Path, acts_TD: np.ndarray, name: str, rows: int) -> tuple[int, dict]:
    """Bytes of the activations on disk, and the seconds of one round of everything."""
    memory = MemoryFile(acts_TD.nbytes)
    write_s = timed(lambda: write(memory, acts_TD, rows, FILTERS[name]))
    path.write_bytes(memory.content())
    with h5py.File(path) as file:
        data = file["activations"]
        taken = {
            "write": write_s,
            "read": timed(lambda: read(data, rows)),
            "shuffle": timed(lambda: shuffle(data, rows)),
            "row": timed(lambda: single_rows(data)) / SINGLE_ROWS,
        }
        if not np.array_equal(data[...], acts_TD):
            raise SystemExit(f"{name}, {rows} rows a chunk: what was read is not what was written")
        return data.id.get_storage_size(), taken


def timed(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def write(memory: MemoryFile, acts_TD: np.ndarray, rows: int, settings: dict) -> None:
    """The activations, alone, as an HDF5 file."""
    with h5py.File(memory, "w", libver=("v110", "v110")) as file:
        chunks = (rows, acts_TD.shape[1])
        file.create_dataset("activations", data=acts_TD, chunks=chunks, fletcher32=True, track_times=False, **settings)


def read(data: h5py.Dataset, rows: int) -> None:
    """Every chunk in order."""
    for start in range(0, len(data), rows):
        data[start : start + rows]


def shuffle(data: h5py.Dataset, rows: int) -> None:
    """Every chunk in random order, the rows of each window shuffled."""
    random = np.random.default_rng(0)
    starts = random.permutation(np.arange(0, len(data), rows))
    for first in range(0, len(starts), WINDOW_ROWS // rows):
        chosen = np.sort(starts[first : first + WINDOW_ROWS // rows])
        window = np.concatenate([data[start : start + rows].astype(np.float32) for start in chosen])
        window[random.permutation(len(window))]


def single_rows(data: h5py.Dataset) -> None:
    """Rows at random places, one at a time."""
    for row in np.random.default_rng(0).integers(0, len(data), SINGLE_ROWS):
        data[row]


def entry(acts_TD: np.ndarray, name: str, rows: int, size: int, seconds: list[dict]) -> dict:
    """One line of a table."""
    median = {key: statistics.median(one[key] for one in seconds) for key in seconds[0]}
    speeds = {f"{key}_mb_s": acts_TD.nbytes / median[key] / 1e6 for key in ("write", "read", "shuffle")}
    share = {"bytes_a_token": size / len(acts_TD), "share": size / acts_TD.nbytes}
    return {"filter": name, "chunk_rows": rows, **share, **speeds, "row_ms": median["row"] * 1e3, "seconds": seconds}


def show(title: str, entries: list[dict]) -> None:
    """A table of sizes and speeds."""
    table = Table(title=title, box=None)
    table.add_column("filter")
    for name in ("rows a chunk", "bytes", "share", "write MB/s", "read MB/s", "shuffle MB/s", "row ms"):
        table.add_column(name, justify="right")
    for one in entries:
        speeds = (f"{one[key]:,.0f}" for key in ("write_mb_s", "read_mb_s", "shuffle_mb_s"))
        share = f"{one['bytes_a_token']:,.0f}", f"{one['share']:.3f}"
        table.add_row(one["filter"], f"{one['chunk_rows']:,}", *share, *speeds, f"{one['row_ms']:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
