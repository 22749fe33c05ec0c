"""From a model's name to its files on this machine, before anything heavy is imported."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lensae.core.durable import read_json
from lensae.core.errors import DamagedError, UserError

EMBEDDED = "smollm2-135m"
WIDTHS = ("hidden_size", "n_embd", "vocab_size")
DEPTHS = ("num_hidden_layers", "n_layer")


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
    """The directory, if its configuration and all its weight files can be read; raises UserError otherwise."""
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a model directory (it has no config.json)", f"or use '{EMBEDDED}'")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{path} has no .safetensors weights", "convert them: pickled weights are never read")
    try:
        config = read_json(path / "config.json")
        _check_index(path)
    except DamagedError as error:
        raise _unusable(error.what) from None
    shapes = [shape for file in weights for shape in _tensor_shapes(file)]
    _check_config(path / "config.json", config, shapes)
    return path


def _unusable(what: str) -> UserError:
    return UserError(what, "copy or download the model again")


def _check_index(path: Path) -> None:
    """Raise UserError for a weight file that the index of a divided model lists and the directory lacks."""
    index = path / "model.safetensors.index.json"
    names = read_json(index).get("weight_map") if index.is_file() else {}
    if not isinstance(names, dict):
        raise _unusable(f"{index} has no weight_map")
    for name in sorted({str(name) for name in names.values()}):
        if not (path / name).is_file():
            raise _unusable(f"{path / name} is missing")


def _tensor_shapes(file: Path) -> list[list[int]]:
    """The shapes in a safetensors file; raises UserError when its header cannot be read or its data are cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as tensors:
            return [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise _unusable(f"{file} cannot be read ({error})") from None


def _check_config(file: Path, config: dict, shapes: list[list[int]]) -> None:
    """Raise UserError for a configuration without a model type, or with sizes that the weights do not have.

    transformers would first make a model of these sizes, which may take more memory than there is.
    """
    if not isinstance(config.get("model_type"), str):
        raise _unusable(f"{file} has no model_type")
    sizes = {size for shape in shapes for size in shape}
    for name in WIDTHS:
        if name in config and not (isinstance(config[name], int) and config[name] in sizes):
            raise _unusable(f"{file} has {name} {config[name]!r}, which no tensor has")
    for name in DEPTHS:
        if name in config and not (isinstance(config[name], int) and 1 <= config[name] <= len(shapes)):
            raise _unusable(f"{file} has {name} {config[name]!r} for {len(shapes)} tensors")
