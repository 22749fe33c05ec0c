"""The work of each stage as one call: in a store, on a device, and in a process that is left as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lensae._api.progress import ProgressFunction, as_progress
from lensae._api.store import Store, as_store
from lensae.core.device import use_device
from lensae.core.errors import UserError
from lensae.core.paths import use_store
from lensae.core.process_state import unchanged_process
from lensae.core.recipe import TrainRecipe, load_train
from lensae.stages.shared.processes import current

if TYPE_CHECKING:
    from lensae.sae.base import SAE
    from lensae.stages.collect.options import CollectReport
    from lensae.stages.evaluate.report import EvaluationReport
    from lensae.stages.index import IndexReport
    from lensae.stages.shared.progress import Progress
    from lensae.stages.steer.report import SteerReport
    from lensae.stages.train.run import TrainReport

    StorePath = Store | str | os.PathLike[str]
    Watching = Progress | ProgressFunction | None

NOT_IN_RECIPE = ("store", "set_name", "name", "recipe", "index", "device", "progress")


@contextmanager
def _library_call(store: StorePath, device: str) -> Iterator[None]:
    """Work in a store on a device, and leave the process as it was."""
    if current().world_size > 1:
        raise UserError(
            "a call of the library is one process's work", "to share work, start collect or train under torchrun"
        )
    with use_store(as_store(store).path), use_device(device), unchanged_process():
        yield


def collect(
    store: StorePath,
    *,
    model: str | os.PathLike[str] | None = None,
    hooks: Sequence[str] = (),
    corpus: str | os.PathLike[str] = "themes",
    generate: bool = True,
    chat: bool = False,
    text_column: str = "text",
    label_column: str = "label",
    lines: bool | None = None,
    context: int = 512,
    join: bool = False,
    max_tokens: int | None = None,
    max_new_tokens: int = 96,
    samples_per_prompt: int = 1,
    batch_size: int | None = None,
    temperature: float = 0.9,
    top_k: int = 50,
    seed: int = 0,
    dtype: str = "float16",
    compute_dtype: str = "float32",
    compress: str | None = None,
    shard_rows: int | None = None,
    skip_bad: bool = False,
    steer: Sequence[str] = (),
    sae: str | None = None,
    name: str | None = None,
    device: str = "auto",
    progress: Watching = None,
) -> CollectReport:
    """Run a corpus through a model and keep the activations of every prompt and generated token in the store.

    `model` is "smollm2-135m" (the default), a hub id, a directory or a .gguf file; `hooks` are TransformerLens' names
    or patterns (the residual stream after the middle block without any); `corpus` is a shipped one, a file or
    "hf:<dataset>". The other options are those of `lensae collect`. An interrupted pass is resumed by the same call.
    Raises UserError for what the arguments get wrong, LensaeError when an activation does not fit `dtype`.
    """
    given = {key: value for key, value in locals().items() if key not in ("store", "device", "progress")}
    given |= {"hooks": tuple(hooks), "steer": tuple(steer), "corpus": os.fspath(corpus)}
    given["model"] = None if model is None else os.fspath(model)
    from lensae.stages.collect.options import CollectOptions
    from lensae.stages.collect.run import collect as run

    options = CollectOptions(**given)
    with _library_call(store, device):
        report = run(options, _call("collect", store, given), as_progress(progress))
    assert report is not None  # the only process has one
    return report


def _call(name: str, store: StorePath, given: dict) -> str:
    """The call as it can be made again."""
    words = [repr(str(as_store(store).path)), *(f"{key}={value!r}" for key, value in given.items() if value)]
    return f"lensae.{name}({', '.join(words)})"


def train(
    store: StorePath,
    *,
    set_name: str | None = None,
    name: str | None = None,
    recipe: TrainRecipe | str | os.PathLike[str] | None = None,
    arch: str | None = None,
    width: float | None = None,
    k: int | None = None,
    l1: float | None = None,
    target_l0: float | None = None,
    epochs: int | None = None,
    tokens: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    encoder_dtype: str | None = None,
    target: str | None = None,
    seed: int | None = None,
    index: bool = True,
    device: str = "auto",
    progress: Watching = None,
) -> TrainReport:
    """Train a sparse autoencoder on a set (the one finished last), save it under `name` and index its features.

    `recipe` is a TrainRecipe, or a TOML file with a [train] table; the options beside it go over it, and what neither
    gives is chosen from the set's size. Without `index` no feature index is built. An interrupted training is resumed
    by the same call. The report's `sae` says where the SAE is. Raises UserError when the recipe cannot work on the set,
    LensaeError when the training fails.
    """
    given = {key: value for key, value in locals().items() if key not in NOT_IN_RECIPE and value is not None}
    from lensae._api.training_progress import TrainingProgress
    from lensae.stages.train.run import train as run

    if isinstance(recipe, TrainRecipe):
        settings = replace(recipe, **given)
    else:
        settings = load_train(None if recipe is None else Path(recipe), **given)
    with _library_call(store, device):
        report = run(settings, set_name, name, TrainingProgress(as_progress(progress)), index=index)
    assert report is not None  # the only process has one
    return report


def evaluate(
    store: StorePath,
    *,
    set_name: str | None = None,
    sae_name: str | None = None,
    device: str = "auto",
    progress: Watching = None,
) -> EvaluationReport:
    """Measure an SAE (the one finished last) and its baselines on the documents held out of its training.

    `sae_name` may be a folder too. evaluation.json is written beside the SAE. Raises UserError for an SAE that does
    not belong to the set.
    """
    from lensae.stages.evaluate.run import evaluate as run

    with _library_call(store, device):
        return run(set_name, sae_name, as_progress(progress))


def build_index(
    store: StorePath,
    *,
    set_name: str | None = None,
    sae_name: str | None = None,
    device: str = "auto",
    progress: Watching = None,
) -> IndexReport:
    """Build what is missing or out of date of an SAE's feature index, which `Features` and `steer` read.

    Raises UserError for an SAE that does not belong to the set.
    """
    from lensae.stages.index import build

    with _library_call(store, device):
        return build(set_name, sae_name, as_progress(progress))


def steer(
    store: StorePath,
    *,
    feature: int,
    scales: Sequence[float] = (1.0,),
    operation: str = "clamp",
    prompts: str | Sequence[str] | None = None,
    positions: str = "all",
    seed: int = 0,
    max_new_tokens: int = 48,
    samples: int = 4,
    temperature: float = 0.7,
    set_name: str | None = None,
    sae_name: str | None = None,
    device: str = "auto",
    progress: Watching = None,
) -> SteerReport:
    """Change a feature while the model writes, and measure the texts beside the unsteered ones and two controls.

    `scales` are multiples of the feature's maximum over the set, `operation` is one that `lensae steer --help` lists,
    `positions` "all" or "generated". The report's `baseline`, `steered` (one for each scale) and `controls` have the
    `texts`, one for each of its `prompts`. Raises UserError for a feature that does not exist or never fires.
    """
    from lensae.stages.steer.options import DEFAULT_PROMPTS, SteerOptions
    from lensae.stages.steer.run import steer as run

    options = SteerOptions(
        feature=feature,
        scales=tuple(scales),
        operation=operation,
        prompts=(prompts,) if isinstance(prompts, str) else tuple(prompts or DEFAULT_PROMPTS),
        positions=positions,
        seed=seed,
        max_new_tokens=max_new_tokens,
        samples=samples,
        temperature=temperature,
        set_name=set_name,
        sae_name=sae_name,
    )
    with _library_call(store, device):
        return run(options, as_progress(progress))


def load_sae(path: str | os.PathLike[str]) -> SAE:
    """The SAE in a folder in the SAELens layout, on the CPU, for activations as the model gives them.

    Raises UserError for an architecture that is not known and DamagedError for files that do not fit together.
    """
    from lensae.sae.formats.saelens import load

    return load(Path(path))
