"""sparsify's SparseCoder on given rows, stepped as the hook and the loop in its Trainer.fit do, at its defaults.

    optimizer="signum", lr=None   schedule-free sign descent, momentum 0.95, 5e-3 / sqrt(F / 2^14) (config.py: "If None,
                                  it is automatically chosen"; trainer.py)
    auxk_alpha=0.0                default: no auxiliary loss
    matmul precision "high"       what Trainer.fit sets first of all
No normalisation: the loss is relative to the batch's variance, and b_dec starts at the first batch's mean.
"""

from __future__ import annotations

from trains_shared import Job, serve_trainings, write_sae


class SparsifyTraining:
    """A sparse trainer, its optimizer, and the bookkeeping of dead features."""

    penalty = None

    def __init__(self, job: Job, batches):
        import torch
        from schedulefree import ScheduleFreeWrapper
        from sparsify import SaeConfig, TrainConfig
        from sparsify.sign_sgd import SignSGD
        from sparsify.sparse_coder import SparseCoder

        torch.set_float32_matmul_precision("high")
        self.about = TrainConfig(SaeConfig(num_latents=job.d_sae, k=job.k))
        self.trainer = SparseCoder(job.d_model, self.about.sae, "cpu", dtype=torch.float32)
        self.lr = job.lr_factor * 5e-3 / (job.d_sae / 2**14) ** 0.5
        groups = [{"params": self.trainer.parameters(), "lr": self.lr}]
        self.optimizer = ScheduleFreeWrapper(SignSGD(groups), momentum=0.95)
        self.optimizer.train()
        self.silent_F = torch.zeros(job.d_sae, dtype=torch.long)
        self.first = True

    def step(self, x_BD) -> None:
        """The hook, then the loop's step."""
        import torch

        trainer, about = self.trainer, self.about
        if self.first:
            trainer.b_dec.data, self.first = x_BD.mean(0), False
        trainer.set_decoder_norm_to_unit_norm()
        dead_F = self.silent_F > about.dead_feature_threshold if about.auxk_alpha > 0 else None
        variance = (x_BD - x_BD.mean(0)).pow(2).sum()
        out = trainer(x=x_BD, y=x_BD, dead_mask=dead_F, total_variance=variance)
        fired_F = torch.zeros_like(self.silent_F, dtype=torch.bool)
        fired_F[out.latent_indices.flatten()] = True
        float(out.fvu.detach())  # its log reads it at every step
        (out.fvu + about.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        trainer.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.silent_F += len(x_BD)
        self.silent_F[fired_F] = 0

    def finish(self) -> None:
        """The averaged weights, which its checkpoints hold."""
        self.optimizer.eval()
        self.ways = {"trained": self._encode}

    def save(self, folder) -> None:
        """TopK with its k."""
        trainer = self.trainer
        tensors = {"W_enc": trainer.encoder.weight.T, "b_enc": trainer.encoder.bias}
        write_sae(folder, "topk", tensors | {"W_dec": trainer.W_dec, "b_dec": trainer.b_dec}, k=trainer.cfg.k)

    def _encode(self, x_BD):
        found = self.trainer.encode(x_BD)
        features_BF = x_BD.new_zeros(len(x_BD), self.trainer.num_latents)
        features_BF.scatter_(1, found.top_indices, found.top_acts)
        return features_BF, self.trainer.decode(found.top_acts, found.top_indices)


if __name__ == "__main__":
    serve_trainings(SparsifyTraining)
