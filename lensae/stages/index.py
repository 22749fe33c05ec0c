"""index: every feature of an SAE over every row of its set, as an inverted file."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from lensae.core.errors import UserError
from lensae.core.paths import SaeEntry, SetEntry, find_pair
from lensae.index.build import encode_shard
from lensae.index.file import write_segment
from lensae.index.query import Index, is_current
from lensae.stages.shared.progress import Progress, Silent
from lensae.store.reader import SetReader


@dataclass(frozen=True)
class IndexReport:
    """What the index came to; `built` counts the segments that this run made."""

    set_name: str
    sae_name: str
    rows: int
    features: int
    alive: int
    postings: int
    built: int
    segments: int
    seconds: float


def check_match(entry: SetEntry, sae_entry: SaeEntry, cfg: dict) -> None:
    """Raise UserError when the SAE was not trained on this set's model and hook."""
    model = entry.manifest.model
    metadata = cfg.get("metadata", {})
    if int(cfg["d_in"]) != int(entry.manifest.width):
        raise UserError(
            f"SAE '{sae_entry.name}' takes {cfg['d_in']} dimensions, {entry.name} has {entry.manifest.width}",
            "choose the set it was trained on with --set",
        )
    facts = (
        ("model", metadata.get("model_weights_sha256"), model.weights_sha256),
        ("hook", metadata.get("hook_name"), entry.manifest.hook),
    )
    for what, of_sae, of_set in facts:
        if of_sae and of_sae != of_set:
            name = metadata.get("model_name") if what == "model" else of_sae
            raise UserError(
                f"SAE '{sae_entry.name}' was trained on another {what} ({name}) than the set {entry.name} holds",
                "choose the set it was trained on with --set",
            )


def build(set_name: str | None = None, sae_name: str | None = None, progress: Progress | None = None) -> IndexReport:
    """Build the segments that are missing or out of date; what an interrupted run finished is kept."""
    progress = progress or Silent()
    entry, sae_entry = find_pair(set_name, sae_name)
    reader = SetReader(entry)
    from lensae.model.precision import fast_matmul
    from lensae.sae.formats.saelens import WEIGHTS, load

    sae = load(sae_entry.path)
    check_match(entry, sae_entry, sae.cfg)
    digest = hashlib.sha256((sae_entry.path / WEIGHTS).read_bytes()).hexdigest()
    started, built = time.perf_counter(), 0
    progress.start(f"indexing {sae.d_sae:,} features", entry.rows, "rows")
    for number, shard in enumerate(reader.shards):
        path = sae_entry.index_path / shard.file
        if not is_current(path, shard):
            with fast_matmul():
                postings = encode_shard(sae, reader.chunks(number), shard.rows)
            write_segment(path, postings, {"shard_sha256": shard.sha256, "sae_sha256": digest, "rows": shard.rows})
            built += 1
        progress.advance(shard.rows)
    count = Index(sae_entry.index_path, reader.shards).table()["count"]
    seconds = time.perf_counter() - started
    return IndexReport(
        entry.name,
        sae_entry.name,
        entry.rows,
        sae.d_sae,
        int((count > 0).sum()),
        int(count.sum()),
        built,
        len(reader.shards),
        seconds,
    )
