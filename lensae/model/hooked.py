"""The fast route: hook points on the residual stream of an unchanged transformers model.

`TransformerBridge` replaces every component so that everything can be hooked, but without the fast attention. When only
the residual stream is needed, the model runs as transformers built it (sdpa attention) and TransformerLens'
own HookPoints sit between its blocks, under the same names and with the same `add_hook`.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


class BlockHooks(nn.Module):
    """The residual stream before and after one block."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.hook_resid_pre = HookPoint()
        self.hook_resid_post = HookPoint()
        block.register_forward_pre_hook(self._before, with_kwargs=True)
        block.register_forward_hook(self._after)

    def _before(self, _block, args: tuple, kwargs: dict):
        if not self.hook_resid_pre.has_hooks():
            return None
        if args:
            return (self.hook_resid_pre(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self.hook_resid_pre(kwargs["hidden_states"])}

    def _after(self, _block, _args, output):
        if not self.hook_resid_post.has_hooks():
            return None
        if isinstance(output, torch.Tensor):
            return self.hook_resid_post(output)
        return (self.hook_resid_post(output[0]), *output[1:])


class ResidualStream(HookedRootModule):
    """HookPoints named `blocks.N.hook_resid_pre|post` on the blocks of `network`, which is not a submodule."""

    def __init__(self, network: nn.Module, blocks: nn.ModuleList):
        super().__init__()
        self.blocks = nn.ModuleList(BlockHooks(block) for block in blocks)
        self.__dict__["network"] = network
        self.setup()

    def forward(self, *args, **kwargs):
        """Run the model as transformers would."""
        return self.__dict__["network"](*args, **kwargs)
