"""SAELens' SAETrainer on given rows, stepped as its `fit` steps it, at the settings of its page "Training SAEs".

    lr=3e-4                       default of LanguageModelSAERunnerConfig (sae_lens/config.py) and of SAETrainerConfig
    lr_decay_steps = steps // 5   "20% of training", sample run of docs/training_saes.md; Adam, betas 0.9 and 0.999
    normalize_activations="expected_average_only_in"   the same sample run, and its JumpReLU examples
    l1_coefficient=5, l1_warm_up_steps = steps // 20   the same sample run (standard); gated: the same coefficient
    jumprelu                      the page's "tanh" example, all its numbers; its own remark on the other loss: it
                                  "requires training on a large number of tokens to work well, ideally 2 billion"
    use_sparse_activations=False  the default; with True the trainer stops on CPUs, in clip_grad_norm_ (aten::view is
                                  not there for SparseCPU; sae-lens 6.54.12, torch 2.13)
The auxiliary loss is on at its default weight; with the default window (1,000 steps) no feature counts as dead sooner.
"""

from __future__ import annotations

import tempfile

from trains_shared import Job, serve_trainings

LR = 3e-4
L1 = 5.0
NORM_BATCHES = 16  # n_batches_for_norm_estimate: "helpful to lower if you use a larger batch size" (config.py)


class SAELensTraining:
    """A trainer with what its `fit` does before and after the steps."""

    def __init__(self, job: Job, batches):
        from sae_lens.config import SAETrainerConfig
        from sae_lens.registry import get_sae_training_class
        from sae_lens.training.sae_trainer import SAETrainer

        self.lr, self.job = LR * job.lr_factor, job
        self.penalty = (job.penalty or L1) if job.family in ("relu", "gated", "jumprelu") else None
        kind = "standard" if job.family == "relu" else job.family
        sae_class, config_class = get_sae_training_class(kind)
        common = {"d_in": job.d_model, "d_sae": job.d_sae, "normalize_activations": "expected_average_only_in"}
        sae = sae_class(config_class(**common, **self._sparsity()))
        about = SAETrainerConfig(
            total_training_samples=job.steps * job.batch,
            train_batch_size_samples=job.batch,
            lr=self.lr,
            lr_end=self.lr / 10,
            lr_decay_steps=job.steps // 5,
            n_batches_for_norm_estimate=min(NORM_BATCHES, job.steps),
        )
        self.trainer = SAETrainer(about, sae, iter(batches()))
        self.trainer.activation_scaler.estimate_scaling_factor(
            job.d_model, self.trainer.data_provider, about.n_batches_for_norm_estimate
        )

    def _sparsity(self) -> dict:
        job = self.job
        if job.family in ("topk", "batchtopk"):
            return {"k": job.k}
        if job.family != "jumprelu":
            return {"l1_coefficient": self.penalty, "l1_warm_up_steps": job.steps // 20}
        return {
            "l0_coefficient": self.penalty,
            "l0_warm_up_steps": job.steps,
            "jumprelu_sparsity_loss_mode": "tanh",
            "jumprelu_tanh_scale": 4.0,
            "jumprelu_bandwidth": 2.0,
            "jumprelu_init_threshold": 0.1,
            "pre_act_loss_coefficient": 3e-6,
        }

    def step(self, x_BD) -> None:
        """One round of the loop in SAETrainer.fit, without its log."""
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x_BD)
        self.trainer.n_training_steps += 1

    def finish(self) -> None:
        """Fold the normalisation in, as `fit` does at its end. BatchTopK is saved as JumpReLU: measured as well."""
        sae = self.trainer.sae
        sae.fold_activation_norm_scaling_factor(self.trainer.activation_scaler.scaling_factor)
        sae.eval()
        self.ways = {"trained": lambda x_BD: through(sae, x_BD)}
        if self.job.family == "batchtopk":
            from sae_lens import SAE

            with tempfile.TemporaryDirectory() as folder:
                sae.save_inference_model(folder)
                saved = SAE.load_from_disk(folder)
            self.ways["saved"] = lambda x_BD: through(saved, x_BD)

    def save(self, folder) -> None:
        """Its own way to keep an SAE for use."""
        self.trainer.sae.save_inference_model(folder)


def through(sae, x_BD):
    """Features and reconstruction."""
    features_BF = sae.encode(x_BD)
    return features_BF, sae.decode(features_BF)


if __name__ == "__main__":
    serve_trainings(SAELensTraining)
