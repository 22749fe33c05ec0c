"""Collecting beside the bare model and SAELens, in one run: medians over interleaved repeats. `make bench-collect`.

Reading, tokens/s, for hooks at blocks 6 and 15 and contexts of 128 and 512 tokens:
  bare      transformers' own model cut off after the hooked block, no head, at its defaults
  helped    the same with every setting that lensae uses (oneDNN products, plain products in attention, memory kept)
  lensae    the whole pass: tokenising, map to the text, HDF5, fsync; float32
  bfloat16  the same with --compute-dtype bfloat16
  SAELens   its CacheActivationsRunner, in an environment of its own (left out when `make bench-peers` has not made it)
`error` is |stored - bare| / |bare| over all stored tokens. Every contestant reads 2,048 tokens at a time, in a process
of its own.

Generating 64 tokens, tokens/s, batch 1, 8 and 32: transformers' own generate at its defaults, lensae with one hook
captured, and lensae with one feature clamped as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import texts
import torch
from interleaved_runs import Contestant, interleaved, started
from rich.console import Console
from rich.table import Table

from lensae import model as models
from lensae.core.durable import write_json
from lensae.core.paths import find_set
from lensae.store.reader import SetReader

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SAELENS = ROOT / ".peers" / "sae-lens" / "bin" / "python"
TOKENS_A_BATCH = 2048
OURS = {"lensae": "float32", "bfloat16": "bfloat16"}  # contestant -> compute dtype
GENERATED = 64
BATCHES = (1, 8, 32)
WRITING_HOOK = "blocks.15.hook_resid_post"


def main() -> None:
    """Run everything, print the tables, write results/collect.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16_384)
    texts.add_option(parser)
    options = parser.parse_args()
    source = models.resolve()
    joined = "\n".join(texts.texts_of(options.corpus))
    windows = {context: full_windows(source, joined, context, options.tokens) for context in (128, 512)}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with started(readers(source, place / "log")) as contestants:
            cases = [(context, block) for context in windows for block in (6, 15)]
            reading = [read_row(contestants, source, b, windows[c], c, options.repeats, place) for c, b in cases]
        with started(writers(source, place / "log")) as contestants:
            (place / "prompts.json").write_text(json.dumps([ids[:24] for ids in windows[128][: max(BATCHES)]]))
            writing = [write_row(contestants, batch, options.repeats, place) for batch in BATCHES]
    facts = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    show("reading, tokens/s", reading, "bare")
    show(f"generating {GENERATED} tokens, tokens/s", writing, "transformers")
    write_json(HERE / "results" / "collect.json", {"about": facts, "reading": reading, "generating": writing})


def full_windows(source, joined: str, context: int, tokens: int) -> list[list[int]]:
    """Texts of exactly `context` tokens with their BOS, about `tokens` in all; each decodes to what encodes to it."""
    text = models.load_tokenizer(source)
    all_ids = text.encode(joined)[1:]
    windows: list[list[int]] = []
    for start in range(0, len(all_ids), context - 1):
        ids = [text.bos_id, *all_ids[start : start + context - 1]]
        if len(ids) == context and text.encode(text.spans(ids)[0]) == ids:
            windows.append(ids)
        if len(windows) * context >= tokens:
            break
    return windows


def readers(source, log: Path) -> Iterator[Contestant]:
    """The contestants of the first table."""
    common = {"model": str(source.path)}
    yield Contestant("bare", "reads_transformers.py", {**common, "helped": False}, log)
    yield Contestant("helped", "reads_transformers.py", {**common, "helped": True}, log)
    for name, dtype in OURS.items():
        yield Contestant(name, "reads_lensae.py", {"compute_dtype": dtype}, log)
    if SAELENS.is_file():
        d_model = json.loads((source.path / "config.json").read_text())["hidden_size"]
        yield Contestant("SAELens", "reads_saelens.py", {**common, "d_model": d_model}, log, str(SAELENS))


def read_row(
    contestants, source, block: int, windows: list[list[int]], context: int, repeats: int, place: Path
) -> dict:
    """One line of the first table."""
    folder = place / f"{context}-{block}"
    case = inputs(source, windows, folder)
    case |= {"block": block, "hook": f"blocks.{block}.hook_resid_post"}
    case |= {"context": context, "batch": TOKENS_A_BATCH // context}
    figures = interleaved(contestants, case, repeats)
    tokens = len(windows) * context
    speeds = {
        name: statistics.median(run.get("tokens", tokens) / run["seconds"] for run in runs)
        for name, runs in figures.items()
    }
    plain_NTD = np.load(folder / "bare.npy")
    errors = {}
    for name, dtype in OURS.items():
        os.environ["LENSAE_STORE"] = str(folder / dtype)
        errors[name] = relative_error(SetReader(find_set("first")), plain_NTD, windows)
    last = {name: runs[-1] for name, runs in figures.items()}
    return {
        "context": context,
        "block": block,
        "tokens": tokens,
        **speeds,
        "error": errors["lensae"],
        "bfloat16 error": errors["bfloat16"],
        "peak_memory": {name: run["peak_memory"] for name, run in last.items()},
        "bytes_per_token": {name: run["bytes_per_token"] for name, run in last.items() if "bytes_per_token" in run},
        "seconds": {name: [run["seconds"] for run in runs] for name, runs in figures.items()},
    }


def inputs(source, windows: list[list[int]], folder: Path) -> dict:
    """The windows as token ids and as texts, in files."""
    folder.mkdir()
    ids, texts = folder / "windows.json", folder / "windows.jsonl"
    ids.write_text(json.dumps(windows))
    text = models.load_tokenizer(source)
    texts.write_text("".join(json.dumps({"text": text.spans(w)[0]}) + "\n" for w in windows), encoding="utf-8")
    return {"folder": str(folder), "windows": str(ids), "corpus": str(texts)}


def relative_error(reader: SetReader, plain_NTD: np.ndarray, windows: list[list[int]]) -> float:
    """|stored - bare| / |bare| over all stored tokens, each matched by its document and place."""
    place = {tuple(ids): number for number, ids in enumerate(windows)}
    difference = norm = 0.0
    chosen = reader.everything()
    for document, rows in zip(reader.documents(chosen), reader.document_rows(chosen), strict=True):
        expected = plain_NTD[place[tuple(document.input_ids.tolist())]]
        with reader.shard(document.shard) as shard:
            expected = expected[shard.read("position", slice(*document.rows))]
        difference += float(np.square(rows - expected, dtype=np.float64).sum())
        norm += float(np.square(expected, dtype=np.float64).sum())
    return (difference / norm) ** 0.5


def writers(source, log: Path) -> Iterator[Contestant]:
    """The contestants of the second table."""
    yield Contestant("transformers", "writes_transformers.py", {"model": str(source.path)}, log)
    for name in ("capture", "clamp"):
        yield Contestant(name, "writes_lensae.py", {"hook": WRITING_HOOK, "clamp": name == "clamp"}, log)


def write_row(contestants, batch: int, repeats: int, place: Path) -> dict:
    """One line of the second table."""
    case = {"prompts": str(place / "prompts.json"), "batch": batch, "new": GENERATED}
    figures = interleaved(contestants, case, repeats)
    seconds = {name: [run["seconds"] for run in runs] for name, runs in figures.items()}
    speeds = {name: batch * GENERATED / statistics.median(values) for name, values in seconds.items()}
    return {"batch": batch, **speeds, "seconds": seconds}


def show(title: str, rows: list[dict], base: str) -> None:
    """A table of speeds, each with its ratio to `base`."""
    table = Table(title=title, box=None)
    names = [name for name in rows[0] if not isinstance(rows[0][name], dict)]
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(cell(name, row[name], row[base]) for name in names))
    Console(width=120).print(table)


def cell(name: str, value: float, base: float) -> str:
    """A speed with its ratio; counts and errors as they are."""
    if "error" in name:
        return f"{value:.1e}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f} ({value / base:.2f}x)"


if __name__ == "__main__":
    main()
