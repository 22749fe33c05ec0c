"""The files of an SAE's folder in the SAELens 6 layout, without torch: names, shapes, digest and verification.

cfg.json and sae_weights.safetensors are SAELens's; training.json is ours and keeps the digest of the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lensae.core.durable import read_json
from lensae.core.errors import DamagedError
from lensae.core.records import Fault
from lensae.core.training_record import TRAINING, read_training

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
BLOCK_ROWS = 1024  # of a tensor, read at once
NUMPY_FLOATS = ("F16", "F32", "F64")


def tensor_shapes(cfg: dict) -> dict[str, tuple[int, ...]]:
    """The tensors of an SAE and their shapes, by the names that SAELens 6 gives them.

    Raises KeyError, TypeError or ValueError for a configuration without usable sizes.
    """
    d_in, d_sae = int(cfg["d_in"]), int(cfg["d_sae"])
    d_out = int(cfg.get("d_out", d_in))
    vectors: tuple[str, ...] = {"gated": ("b_gate", "b_mag", "r_mag")}.get(cfg["architecture"], ("b_enc",))
    if cfg["architecture"].startswith("jumprelu"):
        vectors += ("threshold",)
    return {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)} | dict.fromkeys(vectors, (d_sae,))


def weights_digest(folder: Path) -> str:
    """sha256 of the weights file."""
    with open(folder / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_digest(folder: Path) -> str:
    """The digest that was recorded when the weights were saved; "" for an SAE that was made elsewhere."""
    record = read_training(folder)
    return (record and record.weights_sha256) or ""


def check_digest(folder: Path) -> None:
    """Raise DamagedError when the weights are not the bytes that were saved."""
    recorded = recorded_digest(folder)
    if recorded and weights_digest(folder) != recorded:
        raise DamagedError(
            f"{folder / WEIGHTS} has changed since it was saved (its sha256 is not the one in {TRAINING})",
            "bring the file back, or train the SAE again under another --name",
        )


def verify_sae(folder: Path) -> list[Fault]:
    """Check a finished SAE: its JSON files, and the digest, shapes and finiteness of its weights.

    The files of the faults are relative to `folder`.
    """
    faults, recorded, shapes = [], "", {}
    try:
        recorded = recorded_digest(folder)
    except DamagedError as error:
        faults.append(Fault(TRAINING, "file", error.what))
    try:
        shapes = tensor_shapes(read_json(folder / CONFIG))
    except DamagedError as error:
        faults.append(Fault(CONFIG, "file", error.what))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        faults.append(Fault(CONFIG, "content", f"not the configuration of an SAE ({error!r})"))
    if not (folder / WEIGHTS).is_file():
        return [*faults, Fault(WEIGHTS, "file", "missing")]
    if recorded and weights_digest(folder) != recorded:
        faults.append(Fault(WEIGHTS, "file", "bytes differ from those saved"))
    return faults + [Fault(WEIGHTS, where, what) for where, what in _tensor_faults(folder / WEIGHTS, shapes)]


def _tensor_faults(path: Path, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    """(tensor, what is wrong with it) for every tensor that is missing, of another shape or not finite."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            names = set(file.keys())
            for name, shape in shapes.items():
                if name not in names:
                    yield name, "missing"
                elif tuple(file.get_slice(name).get_shape()) != shape:
                    yield name, f"of shape {tuple(file.get_slice(name).get_shape())}, not {shape}"
                elif not _is_finite(file.get_slice(name), shape[0]):
                    yield name, "holds values that are not finite"
    except (SafetensorError, OSError) as error:
        yield "file", f"cannot be read: {error}"


def _is_finite(tensor: Any, rows: int) -> bool:
    if tensor.get_dtype() not in NUMPY_FLOATS:  # NumPy has no bfloat16
        return True
    blocks = (tensor[start : min(start + BLOCK_ROWS, rows)] for start in range(0, rows, BLOCK_ROWS))
    return all(np.isfinite(block).all() for block in blocks)
