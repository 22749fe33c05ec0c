"""The rows that the training benchmark runs on: collected once, kept under the system's folder for temporary files.

Shapes: N rows, D d_model.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from pathlib import Path

import numpy as np

from lensae import model as models
from lensae.paths import find_set
from lensae.stages.collect import CollectOptions, collect
from lensae.store.reader import SetReader

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
TEXTS = (ROOT.parent / "shared" / "data" / "mixed.jsonl",)
CORPORA = sorted((ROOT / "corpora").glob("*.jsonl"))
HOOK = "blocks.15.hook_resid_post"
LEAST_BATCHES = 8


def rows_file(wanted: int, batch: int) -> tuple[Path, int]:
    """A .npy file (N, D) float32 of at most `wanted` rows, and how many of them are training rows.

    Documents come in a shuffled order; the last tenth, in whole documents, is held out, the rows before it are
    shuffled. Raises SystemExit when the texts do not give LEAST_BATCHES batches of training rows.
    """
    texts = shuffled_texts()
    source = models.resolve()
    key = hashlib.sha256("\n".join([source.weights_digest(), HOOK, str(wanted), *texts]).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "lensae-bench-train"
    path, about = folder / f"{key}.npy", folder / f"{key}.json"
    if not about.is_file():
        folder.mkdir(exist_ok=True)
        rows_ND, training = collected(texts, wanted)
        np.save(path, rows_ND)
        about.write_text(json.dumps({"training": training}))
    training = json.loads(about.read_text())["training"]
    if training < LEAST_BATCHES * batch:
        raise SystemExit(f"only {training:,} training rows: put more text where {TEXTS[0]} is looked for")
    return path, training


def shuffled_texts() -> list[str]:
    """The texts in an order that is always the same."""
    sources = [path for path in TEXTS if path.is_file()] or CORPORA
    texts = [json.loads(line).get("text", "") for path in sources for line in path.open(encoding="utf-8")]
    texts = [text for text in texts if text]
    random.Random(0).shuffle(texts)
    return texts


def collected(texts: list[str], wanted: int) -> tuple[np.ndarray, int]:
    """The rows (N, D), those that are held out last, and the number of those before."""
    before = os.environ.get("LENSAE_STORE")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "texts.jsonl"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        os.environ["LENSAE_STORE"] = str(Path(folder) / "store")
        try:
            options = CollectOptions(
                hooks=(HOOK,), corpus=str(corpus), generate=False, dtype="float32", max_tokens=wanted, name="rows"
            )
            collect(options, "benchmark")
            reader = SetReader(find_set("rows"))
            documents = list(reader.document_rows(reader.everything()))
        finally:
            os.environ.pop("LENSAE_STORE")
            if before is not None:
                os.environ["LENSAE_STORE"] = before
    ends = np.cumsum([len(rows) for rows in documents])
    training = int(ends[np.searchsorted(ends, 0.9 * ends[-1])])
    rows_ND = np.concatenate(documents)
    np.random.default_rng(0).shuffle(rows_ND[:training])
    return rows_ND, training
