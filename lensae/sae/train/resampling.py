"""Dead features that begin again as what the live ones leave unexplained (Bricken et al. 2023, "Towards
monosemanticity", appendix "Neuron resampling").

Shapes: B rows, D d_model, F features, R dead features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lensae.sae import functional

if TYPE_CHECKING:
    from lensae.sae.architectures._base import BaseTrainer
    from lensae.sae.train.optimizer import Adam
    from lensae.sae.train.schedule import Plan

SIZE = 0.2  # of a new feature's encoder row, in mean norms of those that are live


def due(step: int, times: int, plan: Plan, decay: float) -> bool:
    """Whether dead features begin again after `step` steps: `times` times, evenly before the learning rate decays."""
    span = plan.steps * (1 - decay) / (times + 1)
    return any(step == round(span * number) for number in range(1, times + 1))


@torch.no_grad()
def resample(trainer: BaseTrainer, optimizer: Adam, x_BD: torch.Tensor, target_BD: torch.Tensor) -> int:
    """Give every dead feature the direction of a row's error, drawn by its square; how many there were.

    A feature's encoder row gets a fifth of the live ones' mean norm and the family's starting bias, its decoder row
    unit norm; what the optimizer keeps of it is forgotten. Rows are normalised, as in training. Processes that train
    together draw the same rows, and each takes those of its own features.
    """
    group, dead_F = trainer.group, trainer.dead.mask_F
    dead_R = dead_F.nonzero().view(-1)
    counts = [len(features) for features in group.all_gather(dead_R)] if group.splits_features else [len(dead_R)]
    if not 0 < sum(counts) < group.count_features(len(dead_F)):
        return 0
    trainer.eval()
    error_BD = group.gather_rows(target_BD - trainer(x_BD, target_BD).x_hat_BD)
    trainer.train()
    rows_BD = error_BD if trainer.centre is None else group.gather_rows(x_BD) - trainer.shift_D
    weight_B = error_BD.square().sum(1).cpu()  # where the run's random numbers are
    drawn = torch.multinomial(weight_B, sum(counts), replacement=sum(counts) > len(error_BD))
    drawn_R = drawn.split(counts)[group.rank if group.splits_features else 0]
    trainer.W_dec[dead_R] = functional.unit_rows(error_BD[drawn_R])
    if trainer.W_enc_FD is not trainer.W_dec:
        trainer.W_enc_FD[dead_R] = SIZE * _mean_norm(trainer, ~dead_F) * functional.unit_rows(rows_BD[drawn_R])
    trainer.reset_features(dead_R, group.gather_rows(x_BD))
    trainer.dead.silent_F[dead_R] = 0
    for moments in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].shape[:1] == dead_F.shape:
                moments[name][dead_R] = 0
    return sum(counts)


def _mean_norm(trainer: BaseTrainer, live_F: torch.Tensor) -> torch.Tensor:
    norm_F = trainer.W_enc_FD[live_F].norm(dim=1)
    total, count = trainer.group.sum_over_features(torch.stack([norm_F.sum(), norm_F.new_tensor(float(len(norm_F)))]))
    return total / count
