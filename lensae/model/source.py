"""From a model's name to its files on this machine, before anything heavy is imported."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lensae.core.errors import UserError

EMBEDDED = "smollm2-135m"


@dataclass(frozen=True)
class ModelSource:
    """A model as files: `path` is a Hugging Face directory; `revision` is the hub's commit, or ""."""

    name: str
    path: Path
    revision: str = ""

    def weights_digest(self) -> str:
        """sha256 over the weight files, in the order of their names."""
        return _digest(sorted(self.path.glob("*.safetensors")))

    def tokenizer_digest(self) -> str:
        """sha256 over the tokenizer's files, in the order of their names."""
        return _digest(sorted(p for p in self.path.glob("*token*") if p.is_file()))


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def resolve(name: str | None = None) -> ModelSource:
    """Find the files of a model: the embedded one (default), a directory, a .gguf file, or a hub id.

    A hub id that is not in the cache is downloaded when the hub answers. Raises UserError otherwise.
    """
    if name is None or name == EMBEDDED:
        from lensae.model.gguf import embedded_file, unpack

        return ModelSource(EMBEDDED, unpack(embedded_file()))
    if name.endswith(".gguf"):
        from lensae.model.gguf import unpack

        return ModelSource(Path(name).stem, unpack(_existing_file(Path(name))))
    if Path(name).is_dir():
        return ModelSource(Path(name).resolve().name, _checked_directory(Path(name)))
    from lensae.model.hub import find

    path, revision = find(name)
    return ModelSource(name, path, revision)


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"there is no file {path}", f"give a .gguf file, a model directory, or '{EMBEDDED}'")
    return path


def _checked_directory(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a model directory (it has no config.json)", f"or use '{EMBEDDED}'")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{path} has no .safetensors weights", "convert them: pickled weights are never read")
    return path
