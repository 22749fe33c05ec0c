"""Checkpoints: everything that decides the rest of a training, in one safetensors file.

trainer/<name>  best/<name>     the tensors of the trainer as it is, and as it was when it was best
mean/<name>                     the running means of its weights, where it has them
optimizer/<number>/<name>       what the optimizer keeps of each parameter
random                          the state of torch's generator
metadata["lane"]                JSON: how far it is, plan, recipe, scales, numbers that one batch leaves to the next
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from lensae.durable import new_file
from lensae.errors import DamagedError
from lensae.recipe import TrainRecipe
from lensae.sae import pieces
from lensae.sae.averaging import Average
from lensae.sae.lane import Lane, Measured, Place
from lensae.sae.plan import Plan

VERSION = 1


def save(lane: Lane) -> None:
    """Write the lane's checkpoint, whole or not at all; the one before stands until then.

    Where features are divided all processes take part, and the file is the one that a single process would write.
    """
    from safetensors.torch import save_file

    lane.place.seconds, lane.since = lane.seconds, time.perf_counter()
    facts = {
        "version": VERSION,
        "place": asdict(lane.place),
        "plan": asdict(lane.plan),
        "recipe": asdict(lane.recipe),
        "scales": lane.scales,
        "hints": {name: getattr(lane.trainer, name) for name in lane.trainer.hints},
    }
    metadata, world = {"lane": json.dumps(facts)}, lane.trainer.world
    if world.features_divided:
        pieces.write(lane.checkpoint, _tensors(lane), lambda name: None if _shared(lane, name) else 0, metadata, world)
        return
    with new_file(lane.checkpoint) as partial:
        save_file(_tensors(lane), partial, metadata=metadata)


def _tensors(lane: Lane) -> dict[str, torch.Tensor]:
    found = {f"trainer/{name}": t for name, t in lane.trainer.state_dict().items()}
    found |= {f"best/{name}": t for name, t in (lane.best or {}).items()}
    found |= {f"mean/{name}": t for name, t in (lane.average.mean if lane.average else {}).items()}
    for number, parameter in enumerate(lane.trainer.parameters()):
        kept = lane.optimizer.state.get(parameter, {})
        found |= {f"optimizer/{number}/{name}": t for name, t in kept.items()}
    found["random"] = lane.random
    return _apart(found)


def _shared(lane: Lane, name: str) -> bool:
    """Whether every process holds the whole of a tensor of the checkpoint."""
    kind, _, rest = name.partition("/")
    if kind == "optimizer":
        number, _, kept = rest.partition("/")
        parameters = [name for name, _ in lane.trainer.named_parameters()]
        return kept == "step" or lane.trainer.is_shared(parameters[int(number)])
    return kind == "random" or lane.trainer.is_shared(rest)


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, with a copy of each tensor that shares its memory with one before: the format knows no aliases."""
    seen, apart = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return apart


def load(lane: Lane) -> bool:
    """Put the lane where its checkpoint left it; False when there is none.

    Raises DamagedError when the file cannot be used, or belongs to another training.
    """
    if lane.checkpoint is None or not lane.checkpoint.is_file():
        return False
    facts, tensors = _read(lane.checkpoint, lane=lane)
    if TrainRecipe(**facts["recipe"]) != lane.recipe or Plan(**facts["plan"]) != lane.plan:
        raise _damaged(lane.checkpoint, "it belongs to a training with other settings")
    lane.scales = tuple(facts["scales"])
    history = [Measured(**line) for line in facts["place"].pop("history")]
    lane.place = Place(**facts["place"], history=history)
    for name, value in facts["hints"].items():
        setattr(lane.trainer, name, value)
    try:
        _restore(lane, tensors)
    except (KeyError, RuntimeError) as error:
        raise _damaged(lane.checkpoint, str(error).splitlines()[0]) from None
    return True


def begun(path: Path) -> tuple[TrainRecipe, Plan] | None:
    """The recipe and the plan of the training that a checkpoint is of; None when there is no checkpoint."""
    if not path.is_file():
        return None
    facts, _ = _read(path, tensors=False)
    return TrainRecipe(**facts["recipe"]), Plan(**facts["plan"])


def _read(path: Path, tensors: bool = True, lane: Lane | None = None) -> tuple[dict, dict[str, torch.Tensor]]:
    """The facts of a checkpoint, and its tensors; of a `lane` what it holds of them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["lane"])
            if facts["version"] != VERSION:
                raise ValueError(f"it is of version {facts['version']}")
            names = file.keys() if tensors else ()
            return facts, {name: _part(file, name, lane) for name in names}
    except (SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _part(file, name: str, lane: Lane | None) -> torch.Tensor:
    if lane is None or not lane.trainer.world.features_divided or _shared(lane, name):
        return file.get_tensor(name)
    return file.get_slice(name)[lane.trainer.own]


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"the checkpoint {path} cannot be used: {why}", "remove it to begin this training anew")


def _group(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}


def _restore(lane: Lane, tensors: dict[str, torch.Tensor]) -> None:
    lane.trainer.load_state_dict(_group(tensors, "trainer/"))
    lane.best = _group(tensors, "best/") or None
    if lane.recipe.average:
        lane.average = Average(lane.trainer, lane.recipe.average)
        mean = {name: t.to(lane.device) for name, t in _group(tensors, "mean/").items()}
        lane.average.mean, lane.average.steps = mean, lane.place.step
    lane.random = tensors["random"]
    for number, parameter in enumerate(lane.trainer.parameters()):
        if kept := _group(tensors, f"optimizer/{number}/"):
            lane.optimizer.state[parameter] = {name: t.to(parameter.device) for name, t in kept.items()}
