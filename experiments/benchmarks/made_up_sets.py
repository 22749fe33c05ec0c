"""Activation sets made up from a seed, with texts, labels and an SAE, for benchmarks that need many rows and no model.

Documents of ROWS tokens are drawn from a vocabulary with falling frequencies; every tenth begins like the one before,
as samples of one prompt do. A row is the sum of a direction of its token, one of its document's label, and noise.
Shapes: T tokens of a document, D d_model, V vocabulary, L labels, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensae.core.durable import write_json
from lensae.core.manifest import ModelRecord
from lensae.core.recipe import TrainRecipe
from lensae.core.records import CapturedDocument
from lensae.core.training_record import SetRecord, TrainingRecord
from lensae.store.writer import SetWriter, header

HOOK, MODEL = "blocks.0.hook_resid_post", ModelRecord(name="made-up", path="", weights_sha256="", tokenizer_sha256="")
ROWS, PROMPT_ROWS, WORDS, LABELS = 250, 50, 20_000, 12
SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "re", "si", "to", "vu", "sha", "cho", "pri", "sto", "gra", "ven")


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """What a made-up set is to be."""

    rows: int
    shards: int
    d_model: int
    features: int
    k: int = 32

    @property
    def name(self) -> str:
        """A folder's name for it."""
        return f"{self.rows}-rows-{self.shards}-shards-{self.d_model}-wide-{self.features}-features-k{self.k}"


def make(wanted: MadeUp, store: Path) -> None:
    """Write the set and its SAE into `store`; a set that is there is left, one that is unfinished is completed."""
    folder = store / "made-up" / HOOK
    about = header(MODEL, HOOK, wanted.d_model, "float16", {})
    shard_rows = -(-wanted.rows // wanted.shards)
    with SetWriter(folder, about, {"made-up": wanted.name}, "bench-index", shard_rows) as writer:
        if not writer.complete:
            for number, document in enumerate(documents(wanted)):
                if number >= writer.documents_done:
                    writer.append(document)
            writer.finish()
    if not (folder / "saes" / "made-up" / "training.json").is_file():
        write_sae(folder / "saes" / "made-up", wanted)


def documents(wanted: MadeUp) -> Iterator[CapturedDocument]:
    """The documents of the set."""
    random = np.random.default_rng(0)
    words = [" " + "".join(random.choice(SYLLABLES, 1 + number % 3)) + str(number) for number in range(WORDS)]
    length_V = np.array([len(word) for word in words])
    token_VD, label_LD = (random.normal(size=(count, wanted.d_model)).astype(np.float32) for count in (WORDS, LABELS))
    limit_V = np.cumsum(1 / (np.arange(WORDS) + 10))
    limit_V /= limit_V[-1]
    before = np.zeros(ROWS, np.int64)
    for number in range(wanted.rows // ROWS):
        token_T = np.searchsorted(limit_V, random.random(ROWS))
        if number % 10 == 9:
            token_T[:PROMPT_ROWS] = before[:PROMPT_ROWS]
        before, label = token_T, number % LABELS
        noise_TD = random.normal(size=(ROWS, wanted.d_model)).astype(np.float32)
        end_T, position_T = np.cumsum(length_V[token_T]), np.arange(1, ROWS + 1)
        text = "".join([words[token] for token in token_T])
        yield CapturedDocument(
            text=text,
            prompt=text[: end_T[PROMPT_ROWS - 1]],
            label=f"label {label}",
            input_ids=np.concatenate([[WORDS], token_T]),
            token_id=token_T,
            position=position_T,
            origin=(position_T > PROMPT_ROWS).astype(np.uint8),
            char_start=end_T - length_V[token_T],
            char_end=end_T,
            activations={HOOK: token_VD[token_T] + 0.5 * label_LD[label] + 0.5 * noise_TD},
        )


def write_sae(folder: Path, wanted: MadeUp) -> None:
    """A TopK SAE of random directions, as training leaves one behind."""
    import torch

    from lensae.sae.base import SAE
    from lensae.sae.formats.saelens import config, save

    generator = torch.Generator().manual_seed(0)
    W_FD = torch.nn.functional.normalize(torch.randn(wanted.features, wanted.d_model, generator=generator), dim=1)
    biases = {"b_enc": torch.zeros(wanted.features), "b_dec": torch.zeros(wanted.d_model)}
    cfg = config("topk", wanted.d_model, wanted.features, {"hook_name": HOOK}, k=wanted.k)
    digest = save(folder, SAE(cfg, {"W_enc": W_FD.T.contiguous(), "W_dec": W_FD, **biases}))
    trained_on = SetRecord(name=f"made-up/{HOOK}", hook=HOOK, rows=wanted.rows, model=MODEL, shards_sha256=[])
    record = TrainingRecord(
        recipe=TrainRecipe(), set=trained_on, completed_at="2026-01-01T00:00:00+00:00", weights_sha256=digest
    )
    write_json(folder / "training.json", record.to_json())
