"""Checkpoints: everything that decides the rest of a training, in one safetensors file.

trainer/<name>  best/<name>     the tensors of the trainer as it is, and as it was when it was best
mean/<name>                     the running means of its weights, where it has them
optimizer/<number>/<name>       what the optimizer keeps of each parameter
random                          the state of torch's generator
metadata["run"]                JSON: how far it is, plan, recipe, scales, numbers that one batch leaves to the next
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lensae.core.durable import new_file
from lensae.core.errors import DamagedError
from lensae.core.recipe import TrainRecipe
from lensae.sae.distributed import sharded_safetensors
from lensae.sae.train.ema import ExponentialMovingAverage
from lensae.sae.train.run import Measurement, TrainingRun, TrainingState
from lensae.sae.train.schedule import Plan

VERSION = 2


def save(run: TrainingRun) -> None:
    """Write the run's checkpoint, whole or not at all; the one before stands until then.

    Where features are divided all processes take part, and the file is the one that a single process would write.
    """
    from safetensors.torch import save_file

    run.state.seconds, run.since = run.seconds, time.perf_counter()
    facts = {
        "version": VERSION,
        "state": asdict(run.state),
        "plan": asdict(run.plan),
        "recipe": asdict(run.recipe),
        "scales": run.scales,
        "hints": {name: getattr(run.trainer, name) for name in run.trainer.hints},
    }
    metadata, group = {"run": json.dumps(facts)}, run.trainer.group
    if group.splits_features:
        tensors = _tensors(run)
        dims = {name: None if _shared(run, name) else 0 for name in tensors}
        sharded_safetensors.write(run.checkpoint, tensors, dims.__getitem__, metadata, group)
        return
    assert run.checkpoint is not None, "a run without a checkpoint is never saved"
    with new_file(run.checkpoint) as partial:
        save_file(_tensors(run), partial, metadata=metadata)


def _tensors(run: TrainingRun) -> dict[str, torch.Tensor]:
    tensors = {f"trainer/{name}": t for name, t in run.trainer.state_dict().items()}
    tensors |= {f"best/{name}": t for name, t in (run.best or {}).items()}
    tensors |= {f"mean/{name}": t for name, t in (run.average.mean if run.average else {}).items()}
    for number, parameter in enumerate(run.trainer.parameters()):
        moments = run.optimizer.state.get(parameter, {})
        tensors |= {f"optimizer/{number}/{name}": t for name, t in moments.items()}
    tensors["random"] = run.random
    return _without_aliases(tensors)


def _shared(run: TrainingRun, name: str) -> bool:
    """Whether every process holds the whole of a tensor of the checkpoint."""
    kind, _, rest = name.partition("/")
    if kind == "optimizer":
        number, _, kept = rest.partition("/")
        parameters = [name for name, _ in run.trainer.named_parameters()]
        return kept == "step" or run.trainer.is_shared(parameters[int(number)])
    return kind == "random" or run.trainer.is_shared(rest)


def _without_aliases(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, with a copy of each tensor that shares its memory with one before: the format knows no aliases."""
    seen, separate = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        separate[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return separate


def load(run: TrainingRun) -> bool:
    """Put the run where its checkpoint left it; False when there is none.

    Raises DamagedError when the file cannot be used, or belongs to another training.
    """
    if run.checkpoint is None or not run.checkpoint.is_file():
        return False
    facts, tensors = _read(run.checkpoint, run=run)
    if TrainRecipe(**facts["recipe"]) != run.recipe or Plan(**facts["plan"]) != run.plan:
        raise _damaged(run.checkpoint, "it belongs to a training with other settings")
    run.scales = tuple(facts["scales"])
    history = [Measurement(**line) for line in facts["state"].pop("history")]
    run.state = TrainingState(**facts["state"], history=history)
    for name, value in facts["hints"].items():
        setattr(run.trainer, name, value)
    try:
        _restore(run, tensors)
    except (KeyError, RuntimeError) as error:
        raise _damaged(run.checkpoint, str(error).splitlines()[0]) from None
    return True


def read_plan(path: Path) -> tuple[TrainRecipe, Plan] | None:
    """The recipe and the plan of the training that a checkpoint belongs to; None without a checkpoint."""
    if not path.is_file():
        return None
    facts, _ = _read(path, tensors=False)
    return TrainRecipe(**facts["recipe"]), Plan(**facts["plan"])


def _read(path: Path, tensors: bool = True, run: TrainingRun | None = None) -> tuple[dict, dict[str, torch.Tensor]]:
    """The facts of a checkpoint and its tensors; for a `run` its own slices of them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["run"])
            if facts["version"] != VERSION:
                raise ValueError(f"it is of version {facts['version']}")
            names = file.keys() if tensors else ()
            return facts, {name: _own_slice(file, name, run) for name in names}
    except (SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _own_slice(file: Any, name: str, run: TrainingRun | None) -> torch.Tensor:
    if run is None or not run.trainer.group.splits_features or _shared(run, name):
        return file.get_tensor(name)
    return file.get_slice(name)[run.trainer.own_features]


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"the checkpoint {path} cannot be used: {why}", "remove it to begin this training anew")


def _group(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}


def _restore(run: TrainingRun, tensors: dict[str, torch.Tensor]) -> None:
    run.trainer.load_state_dict(_group(tensors, "trainer/"))
    run.best = _group(tensors, "best/") or None
    if run.recipe.average:
        run.average = ExponentialMovingAverage(run.trainer, run.recipe.average)
        mean = {name: t.to(run.device) for name, t in _group(tensors, "mean/").items()}
        run.average.mean, run.average.steps = mean, run.state.step
    run.random = tensors["random"]
    for number, parameter in enumerate(run.trainer.parameters()):
        if kept := _group(tensors, f"optimizer/{number}/"):
            run.optimizer.state[parameter] = {name: t.to(parameter.device) for name, t in kept.items()}
