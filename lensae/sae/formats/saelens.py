"""An SAE's directory in the SAELens 6 layout: cfg.json and sae_weights.safetensors.

Shapes: F features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lensae.core.durable import read_json, write_file, write_json
from lensae.core.errors import DamagedError, UserError
from lensae.sae.base import ENCODERS, SAE
from lensae.sae.distributed import sharded_safetensors
from lensae.sae.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lensae.sae.formats._layout import CONFIG, WEIGHTS, check_digest, tensor_shapes, weights_digest

__all__ = ["WEIGHTS", "config", "load", "save", "weights_digest"]

LAYOUT_VERSION = "6.0.0"
FEATURE_DIM = {"W_enc": 1, "b_dec": None}  # the dimension of the features in each tensor, if not the first


def config(architecture: str, d_in: int, d_sae: int, metadata: dict, **more: Any) -> dict:
    """cfg.json for an SAE that takes raw activations."""
    return {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **more,
        "metadata": {"sae_lens_version": LAYOUT_VERSION, **metadata},
    }


def save(folder: Path | None, sae: SAE, group: ProcessGroup = SINGLE_PROCESS) -> str:
    """Write the two files, each whole or not at all; returns the digest of the weights ("" without a folder).

    Where the processes of `group` divide the features, each gives an SAE of its own features, and the first one alone,
    which writes, a folder.
    """
    from safetensors.torch import save as to_bytes

    tensors = {name: t.detach().cpu().float().contiguous() for name, t in sae.tensors.items()}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if group.splits_features:
        path = folder and folder / WEIGHTS
        sharded_safetensors.write(path, tensors, lambda name: FEATURE_DIM.get(name, 0), {}, group)
    elif folder is not None:
        write_file(folder / WEIGHTS, to_bytes(tensors))
    if folder is None:
        return ""
    write_json(folder / CONFIG, sae.cfg)
    return weights_digest(folder)


def load(folder: Path) -> SAE:
    """Read an SAE; the norms of its decoder's rows are folded into its features where those are meant to be scaled by
    them.

    Raises UserError for an architecture that lensae does not run and DamagedError for files that do not fit together
    or weights that are not the ones that were saved (an SAE from elsewhere has no record of them).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    cfg = read_json(folder / CONFIG)
    _check(cfg, folder)
    check_digest(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    expected = tensor_shapes(cfg)
    for name, shape in expected.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise DamagedError(f"{folder / WEIGHTS}: {name} is missing or not of shape {shape}")
    sae = SAE(cfg, {name: tensors[name].to(torch.float32) for name in expected})
    return _folded(sae) if cfg.get("rescale_acts_by_decoder_norm") else sae


def _folded(sae: SAE) -> SAE:
    """The same SAE with a decoder of unit rows, which needs no scaling."""
    norm_F = sae.W_dec.norm(dim=1).clamp(min=1e-12)
    tensors = {"W_enc": sae.tensors["W_enc"] * norm_F, "b_enc": sae.tensors["b_enc"] * norm_F}
    tensors["W_dec"] = sae.W_dec / norm_F[:, None]
    return SAE(sae.cfg | {"rescale_acts_by_decoder_norm": False}, sae.tensors | tensors)


def _check(cfg: dict, folder: Path) -> None:
    if cfg.get("architecture") not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise UserError(f"{folder}: architecture '{cfg.get('architecture')}' is not one of {known}")
    if cfg.get("normalize_activations", "none") != "none":
        raise UserError(f"{folder}: fold its normalisation into the weights first", "lensae reads folded SAEs")
