"""The whole pass of lensae: tokenising, the model, the map to the text, HDF5, fsync."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from interleaved_runs import serve

SHARD_ROWS = 4096  # a few shards in a short pass, as the default makes many in a long one


def prepare(settings: dict):
    """Each run collects into a set of its own; the first one's is left for comparison, the others are removed."""
    import shutil

    from lensae.stages.collect.run import CollectOptions, collect

    def run(case: dict) -> dict:
        store = Path(case["folder"]) / settings["compute_dtype"]
        os.environ["LENSAE_STORE"] = str(store)
        first = not store.exists()
        options = CollectOptions(
            hooks=(case["hook"],),
            corpus=case["corpus"],
            generate=False,
            context=case["context"],
            dtype="float32",
            compute_dtype=settings["compute_dtype"],
            shard_rows=SHARD_ROWS,
            name="first" if first else "again",
        )
        report = collect(options, "benchmark")
        if not first:
            shutil.rmtree(report.paths[0].parent)
        return {"seconds": report.seconds, "bytes_per_token": report.bytes_per_token, "rows": report.rows}

    return run


if __name__ == "__main__":
    serve(prepare)
