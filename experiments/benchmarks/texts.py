"""Texts for benchmarks: those of a file, or what the embedded model writes, made once and kept among the system's
temporary files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lensae.core.durable import write_json
from lensae.core.recipe import Sampling
from lensae.model.generate import generate
from lensae.model.language_model import LanguageModel

CORPORA = Path(__file__).resolve().parents[2] / "corpora"
NEW_TOKENS, BATCH = 480, 16


def documents(model: LanguageModel, corpus: Path | None, tokens: int, longest: int = 512) -> list[list[int]]:
    """Token ids of documents of 64 to `longest` tokens, of about `tokens` tokens together.

    They are the lines of `corpus` (JSONL with `text`), or continuations of the shipped prompts by the model.
    """
    enough: list[list[int]] = []
    for number, ids in enumerate(_from_file(model, corpus) if corpus else _written(model, tokens)):
        length = longest if corpus else 64 + (number * 211) % (longest - 63)
        enough += [ids[:length]] if len(ids) >= 64 else []
        if sum(map(len, enough)) >= tokens:
            break
    return enough


def _from_file(model: LanguageModel, corpus: Path) -> list[list[int]]:
    lines = corpus.read_text(encoding="utf-8").splitlines()
    return [model.text.encode(json.loads(line)["text"]) for line in lines if line.strip()]


def _written(model: LanguageModel, tokens: int) -> Sequence[list[int]]:
    """Continuations of the shipped prompts, as many as are sure to hold `tokens` tokens."""
    count = BATCH * -(-tokens // (BATCH * 200))
    path = Path(tempfile.gettempdir()) / "lensae-bench-texts" / f"{model.name}-{count}.json"
    if not path.is_file():
        print(f"{model.name} writes {count} texts (once)", flush=True)
        prompts = _from_file(model, CORPORA / "themes.jsonl")
        wanted = [prompts[number % len(prompts)] for number in range(count)]
        ids: list[list[int]] = []
        for first in range(0, count, BATCH):
            batch = wanted[first : first + BATCH]
            streams = range(first, first + len(batch))
            ids += [one.ids for one in generate(model, batch, Sampling(NEW_TOKENS), streams)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, ids)
    return json.loads(path.read_text())
