"""SAELens' CacheActivationsRunner on the same token windows, shuffling off, stopping at the hooked layer.

The model goes through its transformers route, whose attention is the fast one.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from interleaved_runs import serve

BATCHES_A_BUFFER = 4  # it fills whole buffers, however few tokens are asked for


def prepare(settings: dict):
    """Each run caches into a folder of its own, removed afterwards."""
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    def run(case: dict) -> dict:
        windows = json.loads(Path(case["windows"]).read_text())
        folder = Path(case["folder"]) / "saelens"
        shutil.rmtree(folder, ignore_errors=True)
        config = CacheActivationsRunnerConfig(
            dataset_path="windows",
            model_name=settings["model"],
            model_class_name="AutoModelForCausalLM",
            model_batch_size=case["batch"],
            hook_name=f"model.layers.{case['block']}",
            d_in=settings["d_model"],
            training_tokens=len(windows) * case["context"],
            context_size=case["context"],
            new_cached_activations_path=str(folder),
            shuffle=False,
            device="cpu",
            streaming=False,
            buffer_size_gb=(BATCHES_A_BUFFER * case["batch"] * case["context"] + 1) * settings["d_model"] * 4 / 1e9,
        )
        runner = CacheActivationsRunner(config, Dataset.from_dict({"input_ids": windows}))
        started = time.perf_counter()
        cached = runner.run()
        seconds = time.perf_counter() - started
        rows = len(cached) * case["context"]
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.rmtree(folder)
        return {"seconds": seconds, "tokens": rows, "bytes_per_token": size / rows}

    return run


if __name__ == "__main__":
    serve(prepare)
