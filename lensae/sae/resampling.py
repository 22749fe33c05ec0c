"""Dead features that begin again as what the live ones leave unexplained (Bricken et al. 2023, "Towards
monosemanticity", appendix "Neuron resampling").

Shapes: B rows, D d_model, F features, R dead features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lensae.sae import functional

if TYPE_CHECKING:
    from lensae.sae.plan import Plan
    from lensae.sae.training import Coder

SIZE = 0.2  # of a new feature's encoder row, in mean norms of those that are live


def due(step: int, times: int, plan: Plan, decay: float) -> bool:
    """Whether dead features begin again after `step` steps: `times` times, evenly before the learning rate decays."""
    span = plan.steps * (1 - decay) / (times + 1)
    return any(step == round(span * number) for number in range(1, times + 1))


@torch.no_grad()
def resample(coder: Coder, optimizer: torch.optim.Optimizer, x_BD: torch.Tensor, target_BD: torch.Tensor) -> int:
    """Give every dead feature the direction of a row's error, drawn by its square; how many there were.

    A feature's encoder row gets a fifth of the live ones' mean norm and the family's starting bias, its decoder row
    unit norm; what the optimizer keeps of it is forgotten. Rows are normalised, as in training.
    """
    dead_R = coder.dead.mask_F.nonzero().view(-1)
    if not len(dead_R) or len(dead_R) == coder.d_sae:
        return 0
    coder.eval()
    error_BD = target_BD - coder(x_BD, target_BD).x_hat_BD
    coder.train()
    drawn_R = torch.multinomial(error_BD.square().sum(1), len(dead_R), replacement=len(dead_R) > len(x_BD))
    live_F = ~coder.dead.mask_F
    coder.W_dec[dead_R] = functional.unit_rows(error_BD[drawn_R])
    if coder.W_enc_FD is not coder.W_dec:
        size = SIZE * coder.W_enc_FD[live_F].norm(dim=1).mean()
        rows_RD = error_BD[drawn_R] if coder.centre is None else x_BD[drawn_R] - coder.shift_D
        coder.W_enc_FD[dead_R] = size * functional.unit_rows(rows_RD)
    coder.restart(dead_R, x_BD)
    coder.dead.silent_F[dead_R] = 0
    for kept in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            if kept[name].shape[:1] == (coder.d_sae,):
                kept[name][dead_R] = 0
    return len(dead_R)
