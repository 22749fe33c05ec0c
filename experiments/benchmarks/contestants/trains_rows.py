"""The rows that the training benchmark runs on: collected once, kept under the system's folder for temporary files.

Shapes: N rows, D d_model.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from texts import HOOK, store_at, texts_of

from lensae import model as models
from lensae.core.paths import find_set
from lensae.stages.collect.run import CollectOptions, collect
from lensae.store.reader import Selection, SetReader

LEAST_BATCHES = 8


@dataclass(frozen=True)
class Rows:
    """A set of activations, and a file `path` (N, D) float32 of all its rows: those of the last tenth of the
    documents are held out and come last, the `training` rows before them are shuffled."""

    path: Path
    training: int
    documents: int  # that the training rows are of
    store: Path

    @contextmanager
    def reader(self) -> Iterator[tuple[SetReader, Selection]]:
        """The set, and its documents that are held out."""
        with store_at(self.store):
            reader = SetReader(find_set("rows"))
            everything = reader.everything()
            lengths = [len(index) for index in everything.indices]
            skipped = np.clip(self.documents - np.cumsum([0, *lengths[:-1]]), 0, lengths)
            chosen = tuple(index[skip:] for index, skip in zip(everything.indices, skipped, strict=True))
            yield reader, Selection(chosen, reader.rows - self.training)


def rows_of(corpus: str | None, wanted: int, batch: int) -> Rows:
    """At most `wanted` rows of a corpus (without one of what the embedded model wrote), its documents shuffled.

    Raises SystemExit when the texts do not give LEAST_BATCHES batches of training rows.
    """
    texts = texts_of(corpus)
    random.Random(0).shuffle(texts)
    key = hashlib.sha256("\n".join([models.resolve().weights_digest(), HOOK, str(wanted), *texts]).encode())
    folder = Path(tempfile.gettempdir()) / "lensae-bench-train" / key.hexdigest()[:16]
    path, about, store = folder / "rows.npy", folder / "about.json", folder / "store"
    if not about.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rows_ND, training, documents = collected(texts, wanted, store)
        np.save(path, rows_ND)
        about.write_text(json.dumps({"training": training, "documents": documents}))
    rows = Rows(path=path, store=store, **json.loads(about.read_text()))
    if rows.training < LEAST_BATCHES * batch:
        raise SystemExit(f"only {rows.training:,} training rows: give a larger --corpus")
    return rows


def collected(texts: list[str], wanted: int, store: Path) -> tuple[np.ndarray, int, int]:
    """The rows (N, D), those that are held out last; how many come before, and of how many documents those are."""
    corpus = store.parent / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    with store_at(store):
        options = CollectOptions(
            hooks=(HOOK,), corpus=str(corpus), generate=False, dtype="float32", max_tokens=wanted, name="rows"
        )
        collect(options, "benchmark")
        reader = SetReader(find_set("rows"))
        documents = list(reader.document_rows(reader.everything()))
    ends = np.cumsum([len(rows) for rows in documents])
    last = int(np.searchsorted(ends, 0.9 * ends[-1]))
    training = int(ends[last])
    rows_ND = np.concatenate(documents)
    np.random.default_rng(0).shuffle(rows_ND[:training])
    return rows_ND, training, last + 1
