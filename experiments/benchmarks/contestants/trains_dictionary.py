"""dictionary_learning's trainers, stepped by `update` as its trainSAE does, at what the package documents.

    lr          top_k, batch_top_k: None, that is 2e-4 / sqrt(F / 2^14) ("auto-select", trainers/top_k.py);
                standard: 1e-3 (README's example, and default); jumprelu 7e-5, gated 5e-5 (defaults)
    normalize_activations=True   unit mean squared norm, "very helpful for hyperparameter transfer" (README)
    l1_penalty  0.1 (default of StandardTrainer and GatedSAETrainer); jumprelu: target_l0 = k, penalty 1
    warm-ups    the defaults (1,000 steps for the rate, 2,000 for the penalty) are longer than the pass, and a trainer
                refuses them then: here 5 % and 10 % of the steps; decay over the last 20 % (DECAY_START_FRACTION = 0.8
                of the dictionary_learning_demo that the README points to)
    threshold_start_step   default 1,000, as the warm-up: scaled with it
The auxiliary loss is on at its default weight, 1/32; its window is 10 million tokens and cannot be set.
"""

from __future__ import annotations

import sys

from trains_shared import Job, serve_trainings, write_sae

FIXED_LR = {"relu": 1e-3, "jumprelu": 7e-5, "gated": 5e-5}
L1 = 0.1
# nnsight, which the package imports and a training does not use, brings a torchvision that may not fit this torch.
sys.modules["torchvision"] = None


class DictionaryTraining:
    """A trainer, and the factor that trainSAE divides the rows by."""

    def __init__(self, job: Job, batches):
        from dictionary_learning.training import get_norm_factor

        self.job, self.number = job, 0
        self.lr = job.lr_factor * FIXED_LR.get(job.family, 2e-4 / (job.d_sae / 2**14) ** 0.5)
        self.penalty = (job.penalty or L1) if job.family in ("relu", "gated") else None
        self.trainer = self._trainer()
        self.norm_factor = get_norm_factor(batches(), steps=min(100, job.steps))  # 100: trainSAE's own

    def _trainer(self):
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
        from dictionary_learning.trainers.gdm import GatedSAETrainer
        from dictionary_learning.trainers.jumprelu import JumpReluTrainer
        from dictionary_learning.trainers.standard import StandardTrainer
        from dictionary_learning.trainers.top_k import TopKTrainer

        job, warmup = self.job, max(1, self.job.steps // 20)
        common = {"steps": job.steps, "activation_dim": job.d_model, "dict_size": job.d_sae, "layer": 15}
        common |= {"lm_name": "smollm2-135m", "lr": self.lr, "warmup_steps": warmup, "device": "cpu", "seed": job.seed}
        common |= {"decay_start": int(0.8 * job.steps)}
        if job.family in ("topk", "batchtopk"):
            kind = TopKTrainer if job.family == "topk" else BatchTopKTrainer
            return kind(**common, k=job.k, threshold_start_step=warmup)
        common["sparsity_warmup_steps"] = 2 * warmup
        if job.family == "jumprelu":
            return JumpReluTrainer(**common, target_l0=float(job.k))
        kind = StandardTrainer if job.family == "relu" else GatedSAETrainer
        return kind(**common, l1_penalty=self.penalty)

    def step(self, x_BD) -> None:
        """One round of the loop in trainSAE."""
        x_BD /= self.norm_factor
        self.trainer.update(self.number, x_BD)
        self.number += 1

    def finish(self) -> None:
        """Undo the normalisation, as trainSAE does. TopK and BatchTopK are used with a threshold: measured as well."""
        ae = self.trainer.ae
        ae.scale_biases(self.norm_factor)
        if self.job.family in ("topk", "batchtopk"):
            self.ways = {
                "trained": lambda x_BD: through(ae, x_BD, use_threshold=False),
                "saved": lambda x_BD: through(ae, x_BD, use_threshold=True),
            }
        else:
            self.ways = {"trained": lambda x_BD: through(ae, x_BD)}

    def save(self, folder) -> None:
        """TopK with its k, BatchTopK with its threshold, as `from_pretrained` gives them to whoever uses them."""
        ae, family = self.trainer.ae, self.job.family
        if family == "jumprelu":
            tensors = {name: getattr(ae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
            write_sae(folder, "jumprelu", tensors, apply_b_dec_to_input=ae.apply_b_dec_to_input)
            return
        tensors = {"W_enc": ae.encoder.weight.T, "W_dec": ae.decoder.weight.T}
        if family == "gated":
            tensors |= {"b_dec": ae.decoder_bias, "b_gate": ae.gate_bias, "b_mag": ae.mag_bias, "r_mag": ae.r_mag}
            write_sae(folder, "gated", tensors)
            return
        tensors |= {"b_enc": ae.encoder.bias, "b_dec": ae.bias if family == "relu" else ae.b_dec}
        if family == "topk":
            write_sae(folder, "topk", tensors, k=self.job.k)
        elif family == "relu":
            write_sae(folder, "standard", tensors)
        else:
            threshold_F = ae.threshold.expand(self.job.d_sae).clamp(min=0)
            write_sae(folder, "jumprelu", tensors | {"threshold": threshold_F})


def through(ae, x_BD, **how):
    """Features and reconstruction."""
    features_BF = ae.encode(x_BD, **how)
    return features_BF, ae.decode(features_BF)


if __name__ == "__main__":
    serve_trainings(DictionaryTraining)
