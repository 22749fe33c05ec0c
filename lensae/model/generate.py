"""Seeded, batched generation with a KV cache; its own forward passes are captured and edited.

Shapes: B batch, T tokens, N new tokens, V vocabulary, K likeliest tokens, W the width of a hook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lensae.core.errors import LensaeError, UserError
from lensae.core.recipe import Sampling
from lensae.core.records import GENERATED, PROMPT
from lensae.model.language_model import SPECIAL, Edit, LanguageModel, StopForward, Taps
from lensae.model.precision import fast_matmul


@dataclass
class Written:
    """One sequence: its prompt, continuation (without an end token), and hook -> activations (tokens, W), float32."""

    prompt_ids: list[int]
    new_ids: list[int] = field(default_factory=list)
    activations: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        """Prompt and continuation."""
        return self.prompt_ids + self.new_ids


def uniforms(seed: int, stream: int, count: int) -> np.ndarray:
    """The random numbers of one document, which depend on the seed and the document's number alone."""
    return np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), stream])).random(count)


def sample(logits_BV: torch.Tensor, u_B: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """One token id per row: the inverse of the cumulative top-k distribution at `u_B` in [0, 1), float64 on the CPU."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    values_BK, ids_BK = logits_BV.float().topk(min(sampling.top_k, logits_BV.shape[-1]), dim=-1)
    # On the CPU: not every device has float64.
    cumulative_BK = (values_BK / sampling.temperature).softmax(-1).cpu().double().cumsum(-1)
    choice_B = (cumulative_BK <= u_B[:, None] * cumulative_BK[:, -1:]).sum(-1).clamp(max=ids_BK.shape[-1] - 1)
    return ids_BK.gather(1, choice_B[:, None].to(ids_BK.device))[:, 0]


def left_pad(model: LanguageModel, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T), padded on the left, and the mask (B, T) of real tokens."""
    width = max(len(ids) for ids in sequences)
    padded = [[model.text.pad_id] * (width - len(ids)) + list(ids) for ids in sequences]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences]
    return torch.tensor(padded, device=model.device), torch.tensor(mask, device=model.device)


def origin_of(model: LanguageModel, ids_BT, mask_BT, prompt_lengths: Sequence[int] | None = None) -> torch.Tensor:
    """PROMPT, GENERATED or SPECIAL for each token of left-padded sequences (all PROMPT without `prompt_lengths`)."""
    special = torch.tensor(sorted(model.text.special_ids), dtype=ids_BT.dtype, device=ids_BT.device)
    origin_BT = torch.where((mask_BT == 0) | torch.isin(ids_BT, special), SPECIAL, PROMPT)
    if prompt_lengths is not None:
        position_BT = mask_BT.cumsum(-1) - 1
        generated_BT = position_BT >= torch.tensor(list(prompt_lengths), device=ids_BT.device)[:, None]
        origin_BT = torch.where((origin_BT == PROMPT) & generated_BT, GENERATED, origin_BT)
    return origin_BT


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    streams: Sequence[int],
    capture: Sequence[str] = (),
    edits: Sequence[Edit] = (),
) -> list[Written]:
    """Continue each prompt (token ids) until an end token or `max_new_tokens`.

    `streams[i]` numbers the random stream of prompt i, so a text does not depend on the rest of the batch.
    With `capture`, the activations of every prompt and generated token come from the passes that generated the text;
    one last pass, stopped after the hooked block, adds those of the final token. The result has no end token.
    """
    ids_BT, mask_BT = left_pad(model, prompts)
    longest = ids_BT.shape[1] + sampling.max_new_tokens
    if longest > model.context:
        raise UserError(
            f"prompt and new tokens are {longest} together, and {model.name} reads at most {model.context}",
            "lower --max-new-tokens or shorten the prompt",
        )
    random = [uniforms(sampling.seed, stream, sampling.max_new_tokens) for stream in streams]
    written = [Written(list(ids)) for ids in prompts]
    with fast_matmul(), Taps(model, capture, edits) as taps:
        members_by_pass = _decode(model, taps, written, ids_BT, mask_BT, torch.tensor(np.array(random)), sampling)
    distribute(written, taps.taken, members_by_pass)
    return written


def _decode(model, taps: Taps, written: list[Written], ids_BT, mask_BT, random_BN, sampling) -> list[list[int]]:
    """The loop of forward passes. Returns the indices of the sequences in each pass."""
    alive, cache, members_by_pass = list(range(len(written))), None, []
    origin_BT = origin_of(model, ids_BT, mask_BT)
    ends = torch.tensor(sorted(model.end_ids), device=model.device)
    for step in range(sampling.max_new_tokens + 1):
        taps.begin(origin_BT)
        last = step == sampling.max_new_tokens
        if last and not taps.capture:
            break
        taps.stop = last  # the last token's activation is needed, not its logits
        members_by_pass.append(alive)
        try:
            logits_BTV, cache = model.forward(ids_BT, mask_BT, cache)
        except StopForward:
            break
        if last:
            break
        if cache is None:
            raise LensaeError(f"{model.name} gives no key-value cache", "read text with it: --no-generate")
        next_B = sample(logits_BTV[:, -1], random_BN[alive, step], sampling)
        going = torch.nonzero(~torch.isin(next_B, ends))[:, 0]
        if len(going) < len(alive):
            alive = [alive[i] for i in going.tolist()]
            if not alive:
                break
            cache.batch_select_indices(going)
            next_B, mask_BT = next_B[going], mask_BT[going]
        for index, token in zip(alive, next_B.tolist(), strict=True):
            written[index].new_ids.append(token)
        ids_BT = next_B[:, None]
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
        origin_BT = torch.where(origin_of(model, ids_BT, mask_BT[:, -1:]) == SPECIAL, SPECIAL, GENERATED)
    return members_by_pass


def distribute(written: list[Written], taken: dict[str, list[torch.Tensor]], members_by_pass: list[list[int]]) -> None:
    """Copy the captures of each pass (B, T, W) into one array (tokens, W) per sequence."""
    for hook, passes in taken.items():
        arrays = [np.empty((len(w.ids), passes[0].shape[-1]), np.float32) for w in written]
        filled = [0] * len(written)
        for x_BTW, members in zip(passes, members_by_pass, strict=True):
            x = x_BTW.cpu().numpy()
            for b, index in enumerate(members):
                length = len(written[index].prompt_ids) if filled[index] == 0 else 1
                arrays[index][filled[index] : filled[index] + length] = x[b, x.shape[1] - length :]
                filled[index] += length
        for w, array in zip(written, arrays, strict=True):
            w.activations[hook] = array
