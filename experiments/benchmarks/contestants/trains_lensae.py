"""lensae's own trainers, stepped as its training loop steps them.

The learning rate is what its plan chooses for the budget; families without a k are given it as `target_l0`. The rows
are multiplied by one factor that gives them a mean norm of sqrt(D). What is chosen after training (thresholds) is
chosen on the last batches of the pass, so that it has not seen the held-out rows.
"""

from __future__ import annotations

import dataclasses
import itertools

from trains_shared import Job, serve_trainings

SAMPLE_BATCHES, CALIBRATION_BATCHES = 4, 8
NO_K = ("relu", "gated")


class LensaeTraining:
    """One run of the training loop."""

    penalty = None

    def __init__(self, job: Job, batches):
        import torch

        from lensae.core import registry
        from lensae.core.recipe import TrainRecipe
        from lensae.sae.functional import norm_scale
        from lensae.sae.train.run import TrainingRun
        from lensae.sae.train.schedule import complete, make_plan

        target = float(job.k) if job.family in NO_K else None
        width = job.d_sae / job.d_model
        recipe = TrainRecipe(
            arch=job.family, width=width, k=job.k, batch=job.batch, epochs=1, target_l0=target, seed=job.seed
        )
        recipe = complete(recipe, job.steps * job.batch, job.d_model)
        plan = make_plan(recipe, job.steps * job.batch, job.d_model)
        plan = dataclasses.replace(plan, lr=plan.lr * job.lr_factor)
        architecture = registry.load("sae.architectures", job.family)
        make = lambda window: architecture.Trainer(job.d_model, job.d_sae, recipe, window)  # noqa: E731
        self.run, self.lr = TrainingRun(recipe, plan, make), plan.lr
        sample_BD = torch.cat(list(itertools.islice(batches(), SAMPLE_BATCHES)))
        self.scale = norm_scale(sample_BD, recipe.norm_limit)
        self.run.start([sample_BD], (self.scale,))
        self.last = lambda: itertools.islice(batches(), max(0, job.steps - CALIBRATION_BATCHES), None)

    def step(self, x_BD) -> None:
        """Learn from one batch."""
        self.run.step([x_BD * self.scale])
        self.run.end_step()

    def finish(self) -> None:
        """Calibrate; the SAE is used as it is saved, for raw activations."""
        trainer = self.run.trainer
        trainer.eval()
        trainer.calibrate(lambda: (x_BD * self.scale for x_BD in self.last()))
        sae = self.sae = trainer.sae(self.scale, {})

        def encode(x_BD):
            features_BF = sae.encode(x_BD)
            return features_BF, sae.decode(features_BF)

        self.ways = {"trained": encode}

    def measure(self, heldout) -> None:
        """What `train` measures at its end, on rows that are in memory."""
        from lensae.sae.train.validation import measure

        measure(self.run.trainer, [x_BD.numpy() for x_BD in heldout], self.scale)

    def save(self, folder) -> None:
        """As `train` keeps it."""
        from lensae.sae.formats import saelens as checkpoint

        checkpoint.save(folder, self.sae)


def build(job: Job, batches) -> LensaeTraining:
    """A training with the loop's own way with memory."""
    from lensae.core.memory import keep_freed_memory

    keep_freed_memory(any_size=True)
    return LensaeTraining(job, batches)


def around():
    """The precision that `train` runs in."""
    from lensae.model.precision import fast_matmul

    return fast_matmul()


if __name__ == "__main__":
    serve_trainings(build, around)
