"""Collecting beside the bare model, in one run: medians over interleaved repeats. `make bench-collect` runs it.

Reading, tokens/s, for hooks at blocks 6 and 15 and contexts of 128 and 512 tokens:
  bare      transformers' own model cut off after the hooked block, no head, at its defaults
  helped    the same with every setting that lensae uses (oneDNN products, plain products in attention)
  lensae    the whole pass: tokenising, map to the text, HDF5, fsync
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
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lensae import model as models
from lensae.durable import write_json
from lensae.model.generate import Sampling, generate
from lensae.model.precision import fast_matmul, use_plain_products_in_attention
from lensae.model.quiet import transformers
from lensae.paths import find_set
from lensae.sae.base import SAE
from lensae.stages.collect import CollectOptions, collect
from lensae.steering.edits import FeatureEdit
from lensae.store.reader import SetReader

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TEXTS = (ROOT.parent / "shared" / "data" / "mixed.jsonl", ROOT / "corpora" / "transport.jsonl")
TOKENS_A_BATCH = 4096
GENERATED = 64


def main() -> None:
    """Run everything, print the tables, write results/collect.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=12_288)
    options = parser.parse_args()
    source = models.resolve()
    windows = {context: full_windows(source, context, options.tokens) for context in (128, 512)}
    reading = [read_row(source, block, windows[c], c, options.repeats) for c in (128, 512) for block in (6, 15)]
    writing = [generate_row(source, batch, windows[128], options.repeats) for batch in (1, 8, 32)]
    facts = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    show("reading, tokens/s", reading, "bare")
    show(f"generating {GENERATED} tokens, tokens/s", writing, "transformers")
    write_json(HERE / "results" / "collect.json", {"about": facts, "reading": reading, "generating": writing})


def full_windows(source, context: int, tokens: int) -> list[list[int]]:
    """Texts of exactly `context` tokens with their BOS, about `tokens` in all; each decodes to what encodes to it."""
    text = models.load_tokenizer(source)
    path = next(path for path in TEXTS if path.is_file())
    joined = text.encode("\n".join(json.loads(line)["text"] for line in path.open(encoding="utf-8")))[1:]
    found: list[list[int]] = []
    for start in range(0, len(joined), context - 1):
        ids = [text.bos_id, *joined[start : start + context - 1]]
        if len(ids) == context and text.encode(text.spans(ids)[0]) == ids:
            found.append(ids)
        if len(found) * context >= tokens:
            break
    return found


def interleaved(repeats: int, **runs) -> dict[str, list[float]]:
    """Each run's seconds, the runs taken in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            taken = run()
            if turn:
                seconds[name].append(taken)
    return seconds


def bare(source, block: int):
    """transformers' own stack up to `block`, and the list that its last output goes to."""
    network = transformers.AutoModelForCausalLM.from_pretrained(str(source.path), dtype=torch.float32).eval()
    stack = network.model
    stack.layers = stack.layers[: block + 1]
    kept: list[torch.Tensor] = []
    stack.layers[-1].register_forward_hook(lambda m, i, o: kept.append(o if isinstance(o, torch.Tensor) else o[0]))
    return stack, kept


def read_row(source, block: int, windows: list[list[int]], context: int, repeats: int) -> dict:
    """One line of the first table."""
    plain, kept_plain = bare(source, block)
    helped, kept_helped = bare(source, block)
    use_plain_products_in_attention(helped)
    hook, size = f"blocks.{block}.hook_resid_post", max(1, TOKENS_A_BATCH // context)
    batches = [torch.tensor(windows[i : i + size]) for i in range(0, len(windows), size)]

    def run_bare() -> float:
        return timed(plain, kept_plain, batches)

    def run_helped() -> float:
        with fast_matmul(), torch.inference_mode():
            return timed(helped, kept_helped, batches)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["LENSAE_STORE"] = folder
        path = Path(folder) / "windows.jsonl"
        text = models.load_tokenizer(source)
        path.write_text("".join(json.dumps({"text": text.spans(ids)[0]}) + "\n" for ids in windows), encoding="utf-8")
        turn = iter(range(100))

        def run_lensae() -> float:
            asked = CollectOptions(
                hooks=(hook,),
                corpus=str(path),
                lines=True,
                generate=False,
                context=context,
                batch_size=size * context // 64,
                dtype="float32",
                name=f"run-{next(turn)}",
            )
            return collect(asked, "bench").seconds

        seconds = interleaved(repeats, bare=run_bare, helped=run_helped, lensae=run_lensae)
        error = relative_error(SetReader(find_set("run-0")), torch.cat(kept_plain[: len(batches)]), windows)
    tokens = len(windows) * context
    speeds = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    return {"context": context, "block": block, "tokens": tokens, **speeds, "error": error, "seconds": seconds}


def timed(stack, kept: list, batches: list[torch.Tensor]) -> float:
    """Seconds for all batches; only the first round's output is kept."""
    keep = len(kept) < len(batches)
    started = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            stack(input_ids=batch, use_cache=False)
    taken = time.perf_counter() - started
    if not keep:
        del kept[len(batches) :]
    return taken


def relative_error(reader: SetReader, plain_BTD: torch.Tensor, windows: list[list[int]]) -> float:
    """|stored - bare| / |bare| over all stored tokens, each matched by its document and place."""
    place = {tuple(ids): number for number, ids in enumerate(windows)}
    difference = norm = 0.0
    chosen = reader.everything()
    for document, rows in zip(reader.documents(chosen), reader.document_rows(chosen), strict=True):
        expected = plain_BTD[place[tuple(document.input_ids.tolist())]].numpy()
        with reader.shard(document.shard) as shard:
            expected = expected[shard.read("position", slice(*document.rows))]
        difference += float(np.square(rows - expected, dtype=np.float64).sum())
        norm += float(np.square(expected, dtype=np.float64).sum())
    return (difference / norm) ** 0.5


def generate_row(source, batch: int, windows: list[list[int]], repeats: int) -> dict:
    """One line of the second table."""
    hook = "blocks.15.hook_resid_post"
    plain = transformers.AutoModelForCausalLM.from_pretrained(str(source.path), dtype=torch.float32).eval()
    model = models.load(source, [hook])
    prompts = [ids[:24] for ids in windows[:batch]]
    edit = FeatureEdit(hook, random_sae(model.d_model, 9216), 1, 30.0)
    greedy = Sampling(GENERATED, 0.0)
    model.network.generation_config.eos_token_id = None
    model.text.eos_ids = set()  # every run writes as many tokens

    def run_transformers() -> float:
        started = time.perf_counter()
        settings = {"do_sample": False, "min_new_tokens": GENERATED, "max_new_tokens": GENERATED, "pad_token_id": 0}
        plain.generate(torch.tensor(prompts), attention_mask=torch.ones(batch, 24, dtype=torch.long), **settings)
        return time.perf_counter() - started

    def run_lensae(edits=()) -> float:
        started = time.perf_counter()
        generate(model, prompts, greedy, range(batch), [hook], edits)
        return time.perf_counter() - started

    seconds = interleaved(repeats, transformers=run_transformers, capture=run_lensae, clamp=lambda: run_lensae([edit]))
    speeds = {name: batch * GENERATED / statistics.median(values) for name, values in seconds.items()}
    return {"batch": batch, **speeds, "seconds": seconds}


def random_sae(d_model: int, features: int) -> SAE:
    """A TopK SAE of random unit directions: only its cost matters here."""
    rows = torch.nn.functional.normalize(torch.randn(features, d_model, generator=torch.Generator().manual_seed(0)))
    tensors = {
        "W_enc": rows.T.contiguous(),
        "b_enc": torch.zeros(features),
        "W_dec": rows,
        "b_dec": torch.zeros(d_model),
    }
    return SAE({"architecture": "topk", "k": 32, "d_in": d_model, "d_sae": features}, tensors)


def show(title: str, rows: list[dict], base: str) -> None:
    """A table of speeds, each with its ratio to `base`."""
    table = Table(title=title, box=None)
    names = [name for name in rows[0] if name not in ("seconds",)]
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(cell(name, row[name], row[base]) for name in names))
    Console(width=110).print(table)


def cell(name: str, value: float, base: float) -> str:
    """A speed with its ratio; counts and errors as they are."""
    if name == "error":
        return f"{value:.1e}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f} ({value / base:.2f}x)"


if __name__ == "__main__":
    main()
