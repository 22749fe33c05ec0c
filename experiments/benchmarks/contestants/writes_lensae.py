"""lensae's generation with one hook captured, and perhaps one feature of a wide SAE clamped."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from interleaved_runs import serve

FEATURES = 9216


def prepare(settings: dict):
    """Continues every prompt at once; no text ends early."""
    from lensae import model as models
    from lensae.core.memory import keep_freed_memory
    from lensae.model.generate import Sampling, generate
    from lensae.steering.edits import FeatureEdit

    keep_freed_memory()
    hook = settings["hook"]
    model = models.load(models.resolve(), [hook])
    edits = [FeatureEdit(hook, random_sae(model.d_model), 1, 30.0)] if settings["clamp"] else []
    model.network.generation_config.eos_token_id = None
    model.text.eos_ids = set()

    def run(case: dict) -> dict:
        prompts = json.loads(Path(case["prompts"]).read_text())[: case["batch"]]
        started = time.perf_counter()
        written = generate(model, prompts, Sampling(case["new"], 0.0), range(len(prompts)), [hook], edits)
        seconds = time.perf_counter() - started
        assert all(len(one.new_ids) == case["new"] for one in written)
        return {"seconds": seconds}

    return run


def random_sae(d_model: int):
    """A TopK SAE of random unit directions: only its cost matters here."""
    import torch

    from lensae.sae.base import SAE

    rows = torch.nn.functional.normalize(torch.randn(FEATURES, d_model, generator=torch.Generator().manual_seed(0)))
    biases = {"b_enc": torch.zeros(FEATURES), "b_dec": torch.zeros(d_model)}
    tensors = {"W_enc": rows.T.contiguous(), "W_dec": rows, **biases}
    return SAE({"architecture": "topk", "k": 32, "d_in": d_model, "d_sae": FEATURES}, tensors)


if __name__ == "__main__":
    serve(prepare)
