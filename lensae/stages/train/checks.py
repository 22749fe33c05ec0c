"""What can be said against a training before anything is allocated, and before torch is loaded."""

from __future__ import annotations

from lensae.core import registry
from lensae.core.errors import UserError
from lensae.core.recipe import TrainRecipe
from lensae.stages.train.data import TrainingData


def check_recipe(data: TrainingData, recipe: TrainRecipe) -> None:
    """Raise UserError for an unknown architecture, and for more active features than there are features."""
    from lensae.sae.train.schedule import make_plan

    registry.check("sae.architectures", recipe.arch)
    plan = make_plan(recipe, data.split.training.rows, data.reader.width)
    active = {f"k = {recipe.k}": recipe.k, f"an L0 of {recipe.target_l0}": recipe.target_l0}
    for described, count in active.items():
        if count and count > plan.d_sae:
            raise UserError(
                f"{described} is more than the {plan.d_sae:,} features there are", "raise --width, or lower it"
            )
