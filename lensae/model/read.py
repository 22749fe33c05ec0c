"""Reading finished texts: forward passes for activations alone, stopped after the last hook.

Shapes: B batch, T tokens, N tokens of all documents, W the width of a hook, 1 a single row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch

from lensae.model.attention import side_by_side
from lensae.model.generate import Written, distribute, left_pad, origin_of
from lensae.model.language_model import Edit, LanguageModel, StopForward, Taps, last_block
from lensae.model.precision import fast_matmul

# The largest relative difference between two ways of reading, in float32 and in shorter formats: rounding causes 1e-6
# and 1.5e-2 (smollm2-135m), documents that attend to each other cause 0.8 and more.
AGREE, AGREE_SHORT = 1e-3, 0.1


@torch.inference_mode()
def read(
    model: LanguageModel, sequences: Sequence[Sequence[int]], capture: Sequence[str], edits: Sequence[Edit] = ()
) -> list[Written]:
    """Run finished sequences through the model and capture `capture` at every token; no logits are computed.

    Where the model allows it the sequences stand side by side in one row, so that no padding is computed.
    """
    ready(model)
    with fast_matmul():
        run = read_side_by_side if model.side_by_side else read_padded
        return run(model, sequences, capture, edits)


@torch.inference_mode()
def ready(model: LanguageModel) -> None:
    """Test, once, which way of reading the model allows."""
    if model.side_by_side is None:
        with fast_matmul():
            model.side_by_side = can_read_side_by_side(model)


def read_padded(model: LanguageModel, sequences, capture: Sequence[str], edits: Sequence[Edit] = ()) -> list[Written]:
    """The reference, which every model allows: a row for each sequence, padded on the left."""
    ids_BT, mask_BT = left_pad(model, sequences)
    taken = _pass(
        model, capture, edits, origin_of(model, ids_BT, mask_BT), input_ids=ids_BT, attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(-1) - 1).clamp(min=0),
    )  # fmt: skip
    written = [Written(list(ids)) for ids in sequences]
    distribute(written, taken, [list(range(len(sequences)))])
    return written


def read_side_by_side(model: LanguageModel, sequences, capture, edits: Sequence[Edit] = ()) -> list[Written]:
    """All sequences one after another in one row, each with separate positions and attention."""
    lengths = [len(ids) for ids in sequences]
    ids_1N = torch.tensor([[i for ids in sequences for i in ids]], device=model.device)
    position_1N = torch.cat([torch.arange(n, device=model.device) for n in lengths])[None]
    origin_1N = origin_of(model, ids_1N, torch.ones_like(ids_1N))
    with side_by_side(lengths):
        taken = _pass(model, capture, edits, origin_1N, input_ids=ids_1N, position_ids=position_1N)
    written = [Written(list(ids)) for ids in sequences]
    bounds = np.cumsum(lengths)[:-1]
    for hook, (x_1NW,) in taken.items():
        for sequence, array in zip(written, np.split(x_1NW[0].cpu().numpy(), bounds), strict=True):
            sequence.activations[hook] = array
    return written


def _pass(model: LanguageModel, capture, edits, origin_BT, **inputs) -> dict[str, list[torch.Tensor]]:
    with Taps(model, capture, edits) as taps:
        taps.stop = True
        taps.begin(origin_BT)
        with contextlib.suppress(StopForward):
            model.run(**inputs, use_cache=False, logits_to_keep=1)
        return taps.taken


def can_read_side_by_side(model: LanguageModel) -> bool:
    """Whether documents side by side give the same activations as each alone, tested by reading some both ways.

    They differ in families whose blocks mix tokens other than through transformers' attention.
    """
    if not model.own_attention or "position_ids" not in model.accepted:
        return False
    hook = f"blocks.{last_block(model.hooks) or 0}.hook_resid_post"
    known = sorted(set(range(min(1000, model.config.vocab_size))) - model.text.special_ids)
    longest = min(model.context, (getattr(model.config, "sliding_window", None) or 8) + 8)
    sequences = [known[:3], known[1 : longest + 1], known[5:8], known[2:9]]
    tolerance = AGREE if model.network.dtype == torch.float32 else AGREE_SHORT
    for joint, ids in zip(read_side_by_side(model, sequences, [hook]), sequences, strict=True):
        alone = read_padded(model, [ids], [hook])[0].activations[hook]
        if not np.linalg.norm(joint.activations[hook] - alone) <= tolerance * np.linalg.norm(alone):
            return False
    return True
