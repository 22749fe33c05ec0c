"""What can be said against a training before anything is allocated, and mostly before torch is loaded."""

from __future__ import annotations

from lensae.core import registry
from lensae.core.device import current_device
from lensae.core.errors import UserError
from lensae.core.memory import total_memory
from lensae.core.recipe import TrainRecipe
from lensae.stages.train.data import TrainingData


def check_recipe(data: TrainingData, recipe: TrainRecipe, processes: int = 1) -> None:
    """Raise UserError for an unknown architecture, more active features than there are, and an SAE too large for the
    memory of the device, when its features are divided among so many `processes`."""
    from lensae.sae.train.schedule import make_plan, memory_needed

    registry.check("sae.architectures", recipe.arch)
    d_model = data.reader.width
    plan = make_plan(recipe, data.split.training.rows, d_model)
    for described, count in (("k =", recipe.k), ("an L0 of", recipe.target_l0)):
        if count and count > plan.d_sae:
            raise UserError(
                f"{described} {count:.12g} is more than the {plan.d_sae:,} features there are",
                "raise --width, or lower it",
            )
    needed = memory_needed(recipe, plan, d_model) // processes
    if needed > total_memory() and needed > (available := _device_memory()):
        raise UserError(
            f"training {plan.d_sae:,} features takes {_gib(needed)}, this machine has {_gib(available)}",
            "lower --width, or divide the features among machines with --shard-features",
        )


def _device_memory() -> int:
    """The memory of the device that trains, in bytes."""
    device = current_device()
    if not device.startswith("cuda"):
        return total_memory()
    import torch

    return torch.cuda.get_device_properties(device).total_memory


def _gib(size: int) -> str:
    return f"{size / 2**30:,.4g} GiB of memory"
