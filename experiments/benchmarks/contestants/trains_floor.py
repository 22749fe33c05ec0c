"""The encoder's product alone, into memory that is there already: what no training of these shapes can be faster than.

The setting `precision` is PyTorch's for float32 products: "medium" goes through oneDNN, "highest" is its default.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from interleaved_runs import serve


def prepare(settings: dict):
    """Multiplies a batch of rows with the encoder's weights."""
    import torch

    torch.set_float32_matmul_precision(settings["precision"])

    def run(case: dict) -> dict:
        job = case["job"]
        generator = torch.Generator().manual_seed(0)
        rows_BD = torch.randn(job["batch"], job["d_model"], generator=generator)
        W_enc = torch.randn(job["d_model"], job["d_sae"], generator=generator)
        pre_BF = rows_BD @ W_enc
        clock = time.perf_counter()
        for _ in range(case["steps"]):
            torch.mm(rows_BD, W_enc, out=pre_BF)
        return {"seconds": time.perf_counter() - clock, "tokens": case["steps"] * job["batch"]}

    return run


if __name__ == "__main__":
    serve(prepare)
