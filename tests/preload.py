"""What the server of processes.py imports once, for all processes that are forked from it."""

import importlib

for name in (
    "transformer_lens.model_bridge",
    "transformers.models.llama.modeling_llama",
    "torch.distributed.launcher.api",
    "lensae.stages.collect.run",
    "lensae.stages.train.sweep",
    "lensae.cli",
    "helpers",
):
    importlib.import_module(name)
