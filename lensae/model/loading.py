"""Loading: transformers reads the weights, TransformerLens gives the hooks."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch

from lensae.core.device import current_device
from lensae.core.errors import LensaeError, UserError, nearest
from lensae.model import attention
from lensae.model.hooked import RESIDUAL, ResidualStream
from lensae.model.language_model import LanguageModel
from lensae.model.quiet import silenced_transformers
from lensae.model.source import ModelSource
from lensae.model.text import Text


def load_text(source: ModelSource) -> Text:
    """The tokenizer of `source`."""
    transformers = silenced_transformers()
    try:
        return Text(transformers.AutoTokenizer.from_pretrained(str(source.path)))
    except Exception as error:  # transformers does not check the files: a mistake in them can raise anything
        raise UserError(f"the tokenizer of {source.name} cannot be loaded: {_reason(error)}") from error


def load(
    source: ModelSource,
    hooks: Sequence[str] = (),
    device: str | None = None,
    dtype: str = "float32",
    edited: Sequence[str] = (),
) -> LanguageModel:
    """The model of `source`, computing in `dtype`, weights unprocessed, its `hooks` (names or patterns) ready for
    `add_hook`, and so are those that are only to be `edited`. Without a `device` it is the current one
    (lensae.core.device).

    The residual stream alone takes the fast route (`ResidualStream`), any other hook the general one
    (`TransformerBridge`). Raises UserError with the nearest names for a hook that the model does not have, and
    when the files cannot be read as a causal language model; LensaeError when TransformerLens cannot hook it.
    """
    text = load_text(source)
    device = device or current_device()
    _check_dtype(dtype, device)
    network = _load_network(source, getattr(torch, dtype)).to(device).eval()
    blocks = _blocks(network, source)
    if blocks is not None:
        chosen = expand(
            hooks, [f"blocks.{n}.hook_resid_{side}" for n in range(len(blocks)) for side in ("pre", "post")]
        )
        if all(_is_residual(hook, len(blocks)) for hook in (*chosen, *edited)):
            own = attention.install(network)
            hooked = ResidualStream(network, blocks)
            return LanguageModel(source, text, network, hooked, device, len(blocks), chosen, own)
    bridge = _bridge(source, network, text, device, getattr(torch, dtype))
    chosen = expand(hooks, sorted(bridge.hook_dict, key=_in_order_of_blocks))
    for hook in (*chosen, *edited):
        check_hook(hook, bridge.hook_dict)
    return LanguageModel(source, text, bridge.original_model, bridge, device, bridge.cfg.n_layers, chosen)


def _check_dtype(dtype: str, device: str) -> None:
    """Raise UserError when the device cannot compute in `dtype` (MPS before macOS 14 knows no bfloat16)."""
    try:
        torch.zeros(1, dtype=getattr(torch, dtype), device=device)
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{device} cannot compute in {dtype}: {error}", "give --compute-dtype float32") from None


def expand(hooks: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """`hooks` with each pattern (`blocks.*.hook_resid_post`) replaced by the names it matches, each name once.

    A pattern that matches nothing stays as it is.
    """
    expanded: list[str] = []
    for hook in hooks:
        expanded += fnmatch.filter(known, hook) or [hook] if set(hook) & set("*?[") else [hook]
    return tuple(dict.fromkeys(expanded))


def _in_order_of_blocks(name: str) -> tuple[int, str]:
    number = name.split(".")[1] if name.startswith("blocks.") else ""
    return (int(number) if number.isdigit() else -1, name)


def check_hook(hook: str, known) -> None:
    """Raise UserError with the nearest names when `hook` is not among `known`."""
    if hook in known:
        return
    hint = nearest(hook, known)
    prefix = hook.rsplit(".", 1)[0] if hook.startswith("blocks.") else "blocks.0"
    residual_hooks = [name for name in known if name.startswith(prefix + ".hook_resid")]
    raise UserError(
        f"the model has no hook '{hook}'", hint or "for example " + ", ".join(residual_hooks or list(known)[:3])
    )


def _is_residual(hook: str, n_blocks: int) -> bool:
    match = RESIDUAL.fullmatch(hook)
    return match is not None and int(match[1]) < n_blocks


def _load_network(source: ModelSource, dtype: torch.dtype):
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
    from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture

    transformers = silenced_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(str(source.path))
        architecture = determine_architecture_from_hf_config(config)
        model_class = get_hf_model_class_for_architecture(architecture)
        network, report = model_class.from_pretrained(
            str(source.path), config=config, dtype=dtype, output_loading_info=True
        )
    except MemoryError:
        raise
    except Exception as error:  # transformers does not check the files: a mistake in them can raise anything
        raise UserError(f"{source.name} cannot be loaded: {_reason(error)}") from error
    if report["missing_keys"]:  # which transformers has filled with random numbers
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"{source.name} cannot be loaded: its files lack {missing}", "copy or download it again")
    return network


def _reason(error: Exception) -> str:
    """The first line of an exception's message, preceded by its type where it may be no sentence."""
    line = (str(error).strip().splitlines() or [""])[0]
    return line if isinstance(error, ValueError | OSError | RuntimeError) and line else f"{type(error).__name__} {line}"


def _adapter(network, source: ModelSource):
    """TransformerLens' description of the architecture: where the blocks are, and how its parts are named."""
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources import build_bridge_config_from_hf
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config

    architecture = determine_architecture_from_hf_config(network.config)
    config = build_bridge_config_from_hf(network.config, architecture, source.name, torch.float32)
    return ArchitectureAdapterFactory.select_architecture_adapter(config)


def _blocks(network, source: ModelSource):
    """The model's stack of blocks, or None for an architecture that has no plain stack."""
    try:
        mapping = _adapter(network, source).component_mapping
        return network.get_submodule(mapping["blocks"].name)
    except (KeyError, AttributeError, ValueError, NotImplementedError):
        return None


def _bridge(source: ModelSource, network, text: Text, device: str, dtype: torch.dtype):
    from transformer_lens.model_bridge import TransformerBridge

    try:
        return TransformerBridge.boot_transformers(
            str(source.path), hf_model=network, tokenizer=text.tokenizer, device=device, dtype=dtype
        )
    except (ValueError, NotImplementedError, KeyError) as error:
        raise LensaeError(f"TransformerLens cannot hook {source.name}: {error}") from error
