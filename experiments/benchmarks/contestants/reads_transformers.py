"""transformers' own model cut off after the hooked block, no head: at its defaults, or with all that lensae uses."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from interleaved_runs import serve


def prepare(settings: dict):
    """The windows run through the stack; the first run at the defaults leaves its activations in bare.npy."""
    import numpy as np
    import torch

    from lensae.core.memory import keep_freed_memory
    from lensae.model import attention
    from lensae.model.precision import fast_matmul
    from lensae.model.quiet import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()
    if settings["helped"]:
        keep_freed_memory()
        attention.install(network)
    stack, layers = network.model, network.model.layers

    def run(case: dict) -> dict:
        stack.layers = layers[: case["block"] + 1]
        kept: list[torch.Tensor] = []
        last = stack.layers[-1]
        hook = last.register_forward_hook(lambda m, i, o: kept.append(o if isinstance(o, torch.Tensor) else o[0]))
        windows, size = json.loads(Path(case["windows"]).read_text()), case["batch"]
        batches = [torch.tensor(windows[i : i + size]) for i in range(0, len(windows), size)]
        started = time.perf_counter()
        with ExitStack() as settings_in_force:
            settings_in_force.enter_context(torch.inference_mode() if settings["helped"] else torch.no_grad())
            if settings["helped"]:
                settings_in_force.enter_context(fast_matmul())
            for batch in batches:
                stack(input_ids=batch, use_cache=False)
        seconds = time.perf_counter() - started
        hook.remove()
        file = Path(case["folder"]) / "bare.npy"
        if not settings["helped"] and not file.exists():
            np.save(file, torch.cat(kept).numpy())
        return {"seconds": seconds}

    return run


if __name__ == "__main__":
    serve(prepare)
