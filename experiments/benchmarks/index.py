"""The feature index: what queries cost as a set grows, and how fast an index is made. `make bench-index`.

Queries, by rows of the set: seconds of a whole command, Python's start included, and its peak memory; the median of
runs that take turns, after one that does not count (`first`). The sets are made up (made_up_sets.py): 1e5, 1e6 and 1e7
rows in 4, 40 and 400 shards, 2,304 features, 32 of them on each row. They are made once and kept (11 GB).

Making: rows a second of a whole index beside those of the encoder's product alone, x @ W_enc of the same rows in
float32 by the faster of PyTorch's libraries, and the peak memory; of made-up rows of width 576 with 2,304 and 18,432
features, or of the SAE and the set that --set and --sae name. Each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import platformdirs
from made_up_sets import MadeUp, make
from rich.console import Console
from rich.table import Table

from lensae.core.durable import write_json
from lensae.core.paths import find_pair, use_store

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIZES = {100_000: 4, 1_000_000: 40, 10_000_000: 400}  # rows -> shards
FEATURE = 447
QUERIES = {
    "top": ("top", str(FEATURE), "--k", "20"),
    "show": ("show", str(FEATURE)),
    "list": ("list",),
    "list max": ("list", "--sort", "max"),
    "list mean": ("list", "--sort", "mean"),
    "list label": ("list", "--sort", "label"),
}
PEAK = "import atexit, sys; from lensae.core.memory import peak_memory; from lensae.cli import main; "
PEAK += "atexit.register(lambda: print(peak_memory(), file=sys.stderr)); main()"
WIDTH, SPEED_ROWS = 576, 120_000
PRODUCT_SIZE, PRODUCT_REPEATS = 2**22, 3  # a block of products, small enough to be used again


def main() -> None:
    """Run everything, print the tables, write results/index.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=list(SIZES), choices=SIZES, help="sets to query")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("lensae")) / "bench-index")
    parser.add_argument("--set", help="measure the making of an index of this set of the store")
    parser.add_argument("--sae", help="and of this SAE")
    parser.add_argument("--speed-of", nargs=2, metavar=("SET", "SAE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.speed_of:
        print(json.dumps(speed(*options.speed_of)))
        return
    queries = query_table(options.cache, options.rows, options.repeats)
    speeds = speed_table(options.cache, options.set, options.sae)
    facts = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    write_json(HERE / "results" / "index.json", {"about": facts, "queries": queries, "making": speeds})


def query_table(cache: Path, sizes: list[int], repeats: int) -> list[dict]:
    """The queries at each size, all of them in turn."""
    entries = [prepared(cache, rows) for rows in sizes]
    for turn in range(repeats + 1):
        for entry in entries:
            for name in QUERIES:
                seconds = timed_query(Path(entry["store"]), name)
                entry["seconds" if turn else "first"][name].append(seconds)
    for entry in entries:
        store = Path(entry.pop("store"))
        entry["peak_memory"] = {name: peak_of_query(store, name) for name in QUERIES}
    show_queries(entries)
    return entries


def prepared(cache: Path, rows: int) -> dict:
    """A made-up set with its index, made if it is not there, as an entry of the table."""
    wanted = MadeUp(rows=rows, shards=SIZES[rows], d_model=16, features=2304)
    store = cache / wanted.name
    make(wanted, store)
    report = json.loads(command(store, "index", "--json").stdout)
    index = find_index(store)
    size = sum(path.stat().st_size for path in index.rglob("*.h5"))
    facts = {"rows": rows, "shards": wanted.shards, "segments": report["segments"], "index_bytes": size}
    if report["encoded"] == rows:
        facts["index_rows_s"] = rows / report["seconds"]
    runs: dict[str, dict[str, list]] = {kind: {name: [] for name in QUERIES} for kind in ("first", "seconds")}
    return {**facts, "store": str(store), **runs}


def find_index(store: Path) -> Path:
    """The index of the store's SAE."""
    with use_store(store):
        return find_pair(None, None)[1].index_path


def command(store: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A command on a store; raises CalledProcessError when it fails."""
    environment = {**os.environ, "LENSAE_STORE": str(store)}
    words = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.run(words, env=environment, check=True, capture_output=True, text=True, cwd=ROOT)


def timed_query(store: Path, name: str) -> float:
    """Seconds of a query."""
    started = time.perf_counter()
    command(store, "features", *QUERIES[name])
    return time.perf_counter() - started


def peak_of_query(store: Path, name: str) -> int:
    """Peak memory of a query in bytes."""
    environment = {**os.environ, "LENSAE_STORE": str(store)}
    words = [sys.executable, "-c", PEAK, "features", *QUERIES[name]]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True, cwd=ROOT)
    return int(done.stderr.split()[-1])


def speed_table(cache: Path, set_name: str | None, sae_name: str | None) -> list[dict]:
    """How fast indexes are made: of the set that is named, else of made-up rows with two SAEs."""
    if set_name:
        pair = find_pair(set_name, sae_name)
        pairs = [(str(pair[0].path), str(pair[1].path))]
    else:
        pairs = []
        for features in (2304, 18_432):
            wanted = MadeUp(rows=SPEED_ROWS, shards=4, d_model=WIDTH, features=features)
            make(wanted, cache / wanted.name)
            with use_store(cache / wanted.name):
                pair = find_pair(None, None)
            pairs.append((str(pair[0].path), str(pair[1].path)))
    entries = []
    for pair in pairs:
        words = [sys.executable, __file__, "--speed-of", *pair]
        entries.append(json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout))
    show_speeds(entries)
    return entries


def speed(set_path: str, sae_path: str) -> dict:
    """Rows a second of an index of a set, made in a temporary folder, then of the encoder's product."""
    from lensae.core.memory import peak_memory
    from lensae.index.build import build_index
    from lensae.index.manifest import SaeIdentity
    from lensae.model.precision import fast_matmul
    from lensae.sae.formats.saelens import load
    from lensae.stages.index import SetSource
    from lensae.store.reader import SetReader

    entry, sae_entry = find_pair(set_path, sae_path)
    reader, sae = SetReader(entry), load(sae_entry.path)
    identity = SaeIdentity(weights_sha256="", config={})
    with tempfile.TemporaryDirectory() as folder, fast_matmul():
        started = time.perf_counter()
        build_index(Path(folder), reader.shards, SetSource(reader), sae, identity, lambda rows: None)
        index_s, peak = time.perf_counter() - started, peak_memory()
        product_s = product_seconds(reader, sae)
    figures = {"rows": reader.rows, "features": sae.d_sae, "d_model": sae.d_in, "peak_memory": peak}
    rates = {"index_rows_s": reader.rows / index_s, "product_rows_s": reader.rows / product_s}
    return {**figures, **rates, "ratio": product_s / index_s}


def product_seconds(reader, sae) -> float:
    """Seconds of x @ W_enc for as many rows as the set has, from those of its first shards (the best of some)."""
    import numpy as np
    import torch

    shards = range(min(2, len(reader.shards)))
    rows_BD = torch.from_numpy(np.concatenate([rows for number in shards for rows in reader.chunks(number)]))
    times = []
    with torch.inference_mode():
        for _ in range(PRODUCT_REPEATS):
            started = time.perf_counter()
            for part_BD in rows_BD.split(PRODUCT_SIZE // sae.d_sae):
                part_BD @ sae.tensors["W_enc"]
            times.append(time.perf_counter() - started)
    return min(times) / len(rows_BD) * reader.rows


def show_queries(entries: list[dict]) -> None:
    """A table of seconds and peak memory, and each size's seconds as a ratio to the smallest's."""
    table = Table(title="queries: seconds (ratio to the smallest set), peak MB", box=None)
    for name in ("rows", "shards", "segments", *QUERIES):
        table.add_column(name, justify="right")
    for entry in entries:
        cells = []
        for name in QUERIES:
            median, least = (statistics.median(one["seconds"][name]) for one in (entry, entries[0]))
            cells.append(f"{median:.2f} ({median / least:.2f}), {entry['peak_memory'][name] / 1e6:.0f}")
        table.add_row(f"{entry['rows']:,}", f"{entry['shards']}", f"{entry['segments']}", *cells)
    Console(width=150).print(table)


def show_speeds(entries: list[dict]) -> None:
    """A table of rows a second."""
    table = Table(title="making an index: rows/s", box=None)
    for name in ("rows", "features", "index", "the product alone", "ratio", "peak MB"):
        table.add_column(name, justify="right")
    for one in entries:
        rates = f"{one['index_rows_s']:,.0f}", f"{one['product_rows_s']:,.0f}", f"{one['ratio']:.2f}"
        table.add_row(f"{one['rows']:,}", f"{one['features']:,}", *rates, f"{one['peak_memory'] / 1e6:,.0f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
