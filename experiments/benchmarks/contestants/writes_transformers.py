"""transformers' own generate at its defaults, greedy, a fixed number of new tokens."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from interleaved_runs import serve


def prepare(settings: dict):
    """Continues every prompt at once."""
    import torch

    from lensae.model.quiet import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()

    def run(case: dict) -> dict:
        prompts = torch.tensor(json.loads(Path(case["prompts"]).read_text())[: case["batch"]])
        new = case["new"]
        how = {"do_sample": False, "min_new_tokens": new, "max_new_tokens": new, "pad_token_id": 0}
        started = time.perf_counter()
        network.generate(prompts, attention_mask=torch.ones_like(prompts), **how)
        return {"seconds": time.perf_counter() - started}

    return run


if __name__ == "__main__":
    serve(prepare)
