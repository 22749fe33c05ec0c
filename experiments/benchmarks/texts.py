"""The texts that benchmarks read: a corpus that is given, or what the embedded model wrote.

What it wrote is made once and kept in the user's cache folder, so that no benchmark needs a file from elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lensae import model as models
from lensae.core.durable import write_file
from lensae.core.paths import find_set
from lensae.corpus import prompts
from lensae.model.language_model import LanguageModel
from lensae.stages.collect.run import CollectOptions, collect
from lensae.store.reader import SetReader

HOOK = "blocks.15.hook_resid_post"
WRITTEN_TOKENS = 150_000  # some minutes of generation
PROMPTS = "transport"


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option --corpus."""
    parser.add_argument("--corpus", metavar="FILE", help="texts to read, rather than what the embedded model wrote")


def texts_of(corpus: str | None) -> list[str]:
    """The texts of a corpus, by its path or name; without one those that the embedded model wrote."""
    return [prompt.text for prompt in prompts.load(corpus or str(written()))]


def documents(model: LanguageModel, corpus: str | None, tokens: int, longest: int = 512) -> list[list[int]]:
    """Token ids of documents of 64 to `longest` tokens, of about `tokens` tokens together, from `texts_of`.

    What the model wrote has one length; it is cut to lengths that are spread evenly.
    """
    enough: list[list[int]] = []
    for number, text in enumerate(texts_of(corpus)):
        ids = model.text.encode(text)
        length = longest if corpus else 64 + (number * 211) % (longest - 63)
        enough += [ids[:length]] if len(ids) >= 64 else []
        if sum(map(len, enough)) >= tokens:
            break
    return enough


def written() -> Path:
    """A .jsonl file of texts that the embedded model wrote, about WRITTEN_TOKENS tokens in all."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lensae" / "benchmarks"
    path = cache / f"written-{models.resolve().weights_digest()[:12]}-{WRITTEN_TOKENS}.jsonl"
    if not path.is_file():
        print(f"the embedded model writes {WRITTEN_TOKENS:,} tokens of text, once, to {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"text": text}) + "\n" for text in _generated())
        write_file(path, "".join(lines).encode())
    return path


def _generated() -> list[str]:
    """What the model writes after the prompts of a shipped corpus, with them."""
    with tempfile.TemporaryDirectory() as folder, store_at(Path(folder)):
        options = CollectOptions(
            hooks=(HOOK,),
            corpus=PROMPTS,
            max_new_tokens=440,
            samples_per_prompt=4,
            max_tokens=WRITTEN_TOKENS,
            name="written",
        )
        collect(options, "benchmark")
        reader = SetReader(find_set("written"))
        return [document.text for document in reader.documents(reader.everything())]


@contextmanager
def store_at(folder: Path) -> Iterator[None]:
    """The store is in `folder` meanwhile."""
    before = os.environ.get("LENSAE_STORE")
    os.environ["LENSAE_STORE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("LENSAE_STORE")
        if before is not None:
            os.environ["LENSAE_STORE"] = before
