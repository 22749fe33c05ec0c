"""One interface to models that were hooked in either way (see lensae.model.loading).

Shapes: B batch, T tokens, V vocabulary, D d_model, W the width of a hook (D for the residual stream).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from lensae.core.errors import UserError
from lensae.model.source import ModelSource
from lensae.model.text import Text

SPECIAL = -1  # the origin of a padding or special token: never stored, never edited


class Edit(Protocol):
    """A change to the activations at one hook."""

    @property
    def hook(self) -> str:
        """The hook's name."""
        ...

    def apply(self, x_BTW: torch.Tensor, origin_BT: torch.Tensor) -> torch.Tensor:
        """The changed activations; `origin_BT` is SPECIAL (-1), PROMPT (0) or GENERATED (1) at each position."""
        ...


class StopForward(Exception):
    """Ends a forward pass early: everything needed has been computed."""


class LanguageModel:
    """A causal language model that can be hooked, stepped with a KV cache, and cut off after the last needed block."""

    def __init__(
        self,
        source: ModelSource,
        text: Text,
        network,
        hooked,
        device: str,
        n_layers: int,
        hooks: tuple[str, ...] = (),
        own_attention: bool = False,
    ):
        self.source, self.text, self.device, self.n_layers = source, text, device, n_layers
        self.hooks = hooks or (self.default_hook(),)
        self.network, self.hooked = network, hooked
        self.config = network.config.get_text_config()
        self.accepted = set(inspect.signature(network.forward).parameters)
        self.own_attention = own_attention  # lensae.model.attention is installed
        self.side_by_side: bool | None = None  # whether documents may share a row; None until tested

    @property
    def name(self) -> str:
        """The name by which the model was requested."""
        return self.source.name

    @property
    def context(self) -> int:
        """The longest input in tokens."""
        return int(getattr(self.config, "max_position_embeddings", 0) or 2048)

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text: the tokenizer's, and those of the model's own generation settings."""
        own = getattr(getattr(self.network, "generation_config", None), "eos_token_id", None)
        return frozenset(self.text.eos_ids) | frozenset([own] if isinstance(own, int) else own or [])

    def default_hook(self) -> str:
        """The residual stream after the middle block."""
        return f"blocks.{self.n_layers // 2}.hook_resid_post"

    def add_hook(self, name: str, fn) -> None:
        """TransformerLens' add_hook: `fn(tensor, hook=...)` may return a replacement."""
        self.hooked.add_hook(name, fn)

    def hooks_for_now(self, hooks: Sequence[tuple[str, Callable]]) -> AbstractContextManager:
        """These hook functions, by hook name, until the end; those that others have added stay."""
        return self.hooked.hooks(fwd_hooks=list(hooks))

    def reset_hooks(self) -> None:
        """Remove every hook function."""
        self.hooked.reset_hooks()

    def forward(self, ids_BT, mask_BT, cache=None, last_only: bool = True, use_cache: bool = True):
        """Logits (B, 1 or T, V) and the cache after `ids_BT`; `mask_BT` covers the cached tokens too (1 = real)."""
        width = ids_BT.shape[1]
        position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        output = self.run(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=use_cache,
            logits_to_keep=1 if last_only else 0,
        )
        return (output.logits[:, -1:] if last_only else output.logits), getattr(output, "past_key_values", None)

    def run(self, input_ids, attention_mask=None, **wanted):
        """The network's output; arguments in `wanted` that its family does not accept are left out."""
        extra = {key: value for key, value in wanted.items() if key in self.accepted}
        return self.network(input_ids=input_ids, attention_mask=attention_mask, **extra)

    def widths(self, hooks: Sequence[str]) -> dict[str, int]:
        """The width of each hook, measured by running two tokens.

        Raises UserError for a hook whose activation is not one vector per token.
        """
        ids_BT = torch.full((1, 2), self.text.pad_id, device=self.device)
        with torch.inference_mode(), Taps(self, hooks) as taps:
            taps.begin(torch.zeros_like(ids_BT))
            self.forward(ids_BT, torch.ones_like(ids_BT))
            missing = [hook for hook in hooks if not taps.taken[hook]]
            if missing:
                raise UserError(f"the hook '{missing[0]}' never fires in {self.name}", "use blocks.N.hook_resid_post")
            return {hook: taps.taken[hook][0].shape[-1] for hook in hooks}

    def order(self, hooks: Sequence[str]) -> list[str]:
        """The hooks in the order in which a forward pass reaches them, measured by running two tokens."""
        ids_BT, in_order = torch.full((1, 2), self.text.pad_id, device=self.device), []
        recorders = [(name, lambda _x, hook, name=name: in_order.append(name)) for name in hooks]
        with torch.inference_mode(), self.hooks_for_now(recorders):
            self.forward(ids_BT, torch.ones_like(ids_BT))
        return in_order


class Taps:
    """The hooks of one run, added on entry and removed on exit; edits come first, so that captures are of the edited
    stream.

    `taken[hook]` collects one (B, T, W) float32 tensor per forward pass. With `stop` set, a pass ends at the block
    that holds the last hook.
    """

    def __init__(self, model: LanguageModel, capture: Sequence[str] = (), edits: Sequence[Edit] = ()):
        self.model, self.capture, self.edits = model, list(capture), list(edits)
        self.taken: dict[str, list[torch.Tensor]] = {hook: [] for hook in self.capture}
        self.origin_BT = torch.empty(0, 0)  # of the pass that comes next: `begin` says
        self.stop = False
        last = last_block([*self.capture, *(edit.hook for edit in self.edits)])
        self.final = f"blocks.{last}.hook_resid_post" if self.capture and last is not None else None

    def begin(self, origin_BT: torch.Tensor) -> None:
        """Set the origin of every token of the next pass."""
        self.origin_BT = origin_BT

    def __enter__(self) -> Taps:
        hooks = [(edit.hook, self._editor(edit)) for edit in self.edits]
        hooks += [(hook, self._taker(hook)) for hook in self.capture]
        hooks += [(self.final, self._stopper)] if self.final else []
        self._added = self.model.hooks_for_now(hooks)
        try:
            self._added.__enter__()
        except ValueError as error:  # for hooks that need a setting of TransformerLens
            raise UserError(f"TransformerLens cannot use this hook: {error}", "use blocks.N.hook_resid_post") from error
        return self

    def __exit__(self, *_exc) -> None:
        self._added.__exit__(None, None, None)

    def _editor(self, edit: Edit):
        def change(x, hook):
            # Some hooks hold a vector per head: (B, T, heads, channels). An edit sees what reading gives.
            return edit.apply(x.flatten(2), self.origin_BT).unflatten(2, x.shape[2:])

        return change

    def _taker(self, name: str):
        def take(x, hook):
            if x.ndim < 3 or x.shape[:2] != self.origin_BT.shape:
                raise UserError(f"the hook '{name}' does not hold one vector per token", "use blocks.N.hook_resid_post")
            # Some families add to the stream in place later, unless the pass ends here.
            ends = self.stop and name == self.final
            self.taken[name].append(x.detach().flatten(2).to(torch.float32, copy=not ends))

        return take

    def _stopper(self, x, hook):
        if self.stop:
            raise StopForward


def last_block(hooks: Sequence[str]) -> int | None:
    """The number of the last block that any of `hooks` lies in."""
    numbers = [int(match[1]) for hook in hooks if (match := re.match(r"blocks\.(\d+)\.", hook))]
    return max(numbers, default=None)
