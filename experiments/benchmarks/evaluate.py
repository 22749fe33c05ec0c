"""The losses of an evaluation in one pass beside a run of the model for each variant. `make bench-evaluate`.

The variants are those of `evaluate`: the stream of smollm2-135m after block 15 as it is, set to zero, reconstructed by
a TopK SAE of 4,608 features, by principal components, and by a random SAE (here both SAEs are random ones: what they
cost does not depend on what they have learnt). Tokens/s counts each token of text once, as medians over interleaved
repeats. The largest relative difference of the mean losses says how far the two ways agree.

Texts are those that the embedded model writes (made once), or those of --corpus FILE (JSONL with `text`).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import texts
import torch
from rich.console import Console
from rich.table import Table

from lensae import model as models
from lensae.core.durable import write_json
from lensae.core.memory import keep_freed_memory
from lensae.model.language_model import LanguageModel
from lensae.model.read import read
from lensae.model.score import TokenLosses, Variants, plain_losses
from lensae.model.variants import OnePass
from lensae.sae.base import SAE
from lensae.sae.formats import saelens
from lensae.sae.metrics.baselines import Covariance, random_sae
from lensae.steering.edits import Replacement

HERE = Path(__file__).resolve().parent
HOOK = "blocks.15.hook_resid_post"
FEATURES, K = 4608, 32
Losses = Callable[[list[list[int]], Callable[[int], None]], Iterator[tuple[int, TokenLosses]]]


def main() -> None:
    """Measure, print the table, write results/evaluate.json."""
    options = arguments()
    keep_freed_memory()
    model = models.load(models.resolve(), [HOOK])
    sequences = texts.documents(model, options.corpus, options.tokens)
    variants = variants_of(model, sequences)
    run = OnePass.of(model, variants)
    if run is None or not run.agrees(sequences):
        raise SystemExit("the model does not allow one pass")
    ways: dict[str, Losses] = {
        "plain": lambda ids, advance: plain_losses(model, variants, ids, advance),
        "one pass": run.losses,
    }
    rates, means = measured(ways, sequences, options.repeats)
    facts = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "hook": HOOK}
    facts |= {"documents": len(sequences), "tokens": sum(map(len, sequences)), "features": FEATURES, "k": K}
    facts["corpus"] = Path(options.corpus).name if options.corpus else "written by the embedded model"
    results = {
        "about": facts,
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "runs": rates,
        "mean_losses": {name: named(variants, mean) for name, mean in means.items()},
        "largest_relative_difference": float(np.max(np.abs(means["one pass"] / means["plain"] - 1))),
    }
    show(results)
    write_json(HERE / "results" / "evaluate.json", results)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=2)
    texts.add_option(parser)
    return parser.parse_args()


def variants_of(model: LanguageModel, sequences: list[list[int]]) -> Variants:
    """The variants of an evaluation, fitted to the first documents."""
    rows = [one.activations[HOOK][1:] for one in read(model, sequences[:8], [HOOK])]
    x_BD = torch.from_numpy(np.concatenate(rows))
    covariance = Covariance(x_BD.shape[1])
    covariance.add(x_BD)
    pca, kind = covariance.pca(K), SAE(saelens.config("topk", x_BD.shape[1], FEATURES, {}, k=K), {})
    functions = {"zero": torch.zeros_like, "pca": pca}
    for seed, name in enumerate(("sae", "random")):
        drawn = random_sae(kind, K, x_BD[:2048], seed)
        functions[name] = lambda x, drawn=drawn: drawn.decode(drawn.encode(x))
    return {name: [Replacement(HOOK, function)] for name, function in functions.items()}


def named(variants: Variants, losses: np.ndarray) -> dict[str, float]:
    """The mean losses by name."""
    names = ["ce clean", *(f"ce {name}" for name in variants), *(f"kl {name}" for name in variants)]
    return dict(zip(names, losses.tolist(), strict=True))


def measured(
    ways: dict[str, Losses], sequences: list[list[int]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Tokens/s of each way's turns, after one on a few tokens that does not count, and its mean losses."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    means: dict[str, np.ndarray] = {}
    for way in ways.values():
        list(way([ids[:64] for ids in sequences[:2]], lambda _tokens: None))
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            losses = [one for _number, one in way(sequences, lambda _tokens: None)]
            rates[name].append(sum(map(len, sequences)) / (time.perf_counter() - started))
            means[name] = np.concatenate([np.concatenate([one.ce_ST, one.kl_ST]) for one in losses], axis=1).mean(1)
    return rates, means


def show(results: dict) -> None:
    """The two ways, their ratio and how far they agree."""
    about, rates = results["about"], results["tokens_per_second"]
    table = Table(title=f"losses of {about['tokens']:,} tokens in {about['documents']} documents", box=None)
    for column in ("", "tokens/s", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.1f}", f"{rate / rates['plain']:.2f}")
    console = Console()
    console.print(table)
    console.print(f"largest relative difference of a mean loss: {results['largest_relative_difference']:.1e}")


if __name__ == "__main__":
    main()
