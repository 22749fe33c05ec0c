"""Hub ids: found in the local cache, else downloaded, else one clear error within seconds."""

from __future__ import annotations

from pathlib import Path

from lensae.core.deadline import within
from lensae.core.errors import UserError

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
ANSWER_WITHIN_S = 3.5


def find(name: str) -> tuple[Path, str]:
    """The snapshot directory and commit of hub model `name`.

    Raises UserError when the name is no hub id, is unknown to the hub, or is neither cached nor reachable.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"'{name}' is neither a model id nor a directory nor a .gguf file", _help(name)) from None
    snapshot = _cached(name)
    if snapshot is None:
        _ask_hub(name)
        snapshot = _download(name)
    return snapshot, snapshot.name


def _help(name: str) -> str:
    return "use 'smollm2-135m' (embedded), a local model directory or a .gguf file" + (
        f"; or, with a network, download it first: hf download {name}" if "://" not in name else ""
    )


def _cached(name: str) -> Path | None:
    """The newest complete snapshot in the hub's cache, also of the id behind an older alias (gpt2)."""
    from huggingface_hub import try_to_load_from_cache

    candidates = [name] if "/" in name else [name, f"openai-community/{name}"]
    for candidate in candidates:
        config = try_to_load_from_cache(candidate, "config.json")
        if isinstance(config, str) and any(Path(config).parent.glob("*.safetensors")):
            return Path(config).parent
    return None


def _ask_hub(name: str) -> None:
    """Ask the hub once whether the model exists; raise UserError when it does not or there is no answer in time."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    failure: BaseException | None = ConnectionError("offline")
    if not constants.HF_HUB_OFFLINE:
        failure = within(ANSWER_WITHIN_S, lambda: HfApi().model_info(name, timeout=ANSWER_WITHIN_S - 0.5))
    if failure is None:
        return
    if isinstance(failure, GatedRepoError):
        raise UserError(f"model '{name}' is gated", "accept its licence on the hub, then: hf auth login")
    if isinstance(failure, RepositoryNotFoundError):
        raise UserError(f"the hub has no model '{name}' (or it is private)", _help(name))
    raise UserError(f"model '{name}' is not in the local cache and the hub cannot be reached", _help(name))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(name, allow_patterns=PATTERNS))
    except OSError as error:
        raise UserError(f"model '{name}' could not be downloaded: {error}", _help(name)) from error
    if not any(snapshot.glob("*.safetensors")):
        raise UserError(f"model '{name}' has no .safetensors weights", "pickled weights are never read")
    return snapshot
