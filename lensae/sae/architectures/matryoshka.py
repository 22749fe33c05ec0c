"""Matryoshka: BatchTopK whose first features must also reconstruct without the later ones (--k; Bussmann et al. 2025).

The loss is the mean over nested prefixes of the features, so that later ones refine and do not absorb the general ones
("Learning multi-level features with Matryoshka sparse autoencoders").

Shapes: B rows, D d_model, F features, P prefixes.
"""

from __future__ import annotations

import torch

from lensae.sae import kernels
from lensae.sae.architectures import batchtopk

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


class Trainer(batchtopk.Trainer):
    """Loss: that of BatchTopK, its error the mean over the reconstructions from the first 1/16, 1/8, 1/4, 1/2 and all
    of the features."""

    def reconstruct(self, features: kernels.Features, target_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The reconstruction from all features, and the mean loss over the prefixes."""
        assert isinstance(features, kernels.Active), "BatchTopK's features are sparse"
        ends = sorted({max(1, round(share * self.d_sae)) for share in SHARES})
        bounds = [min(max(end - self.own_features.start, 0), len(self.W_dec)) for end in ends]
        parts_BD = self.group.sum_over_features(kernels.decode(features.split_at([0, *bounds]), self.W_dec))
        x_hats_PBD = parts_BD.view(len(ends), *target_BD.shape).cumsum(0) + self.group.counted_once(self.b_dec)
        losses = [self.unexplained(target_BD, x_hat_BD) for x_hat_BD in x_hats_PBD]
        return x_hats_PBD[-1], sum(losses, torch.zeros_like(losses[0])) / len(losses)
