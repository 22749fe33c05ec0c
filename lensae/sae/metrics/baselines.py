"""What an SAE is compared with: as many principal components, and an SAE whose directions are random.

Shapes: B rows, D d_model, O width of what a transcoder predicts, F features, K components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lensae.sae import functional
from lensae.sae.base import SAE
from lensae.sae.formats import saelens as checkpoint


class Covariance:
    """The mean and the covariance over a stream of batches, in float64.

    Each batch is centred on its own mean and combined with what has come so far (Chan, Golub and LeVeque 1983): sums
    of raw products lose their digits where a mean is large.
    """

    def __init__(self, d_model: int):
        self.n = 0
        self.mean_D = torch.zeros(d_model, dtype=torch.float64)
        self.products_DD = torch.zeros(d_model, d_model, dtype=torch.float64)

    def add(self, x_BD: torch.Tensor) -> None:
        """Take one batch in."""
        x, n = x_BD.cpu().double(), len(x_BD)
        if not n:
            return
        mean_D = x.mean(0)
        centred, shift_D = x - mean_D, mean_D - self.mean_D
        self.products_DD += centred.T @ centred + torch.outer(shift_D, shift_D) * (self.n * n / (self.n + n))
        self.mean_D += shift_D * (n / (self.n + n))
        self.n += n

    def pca(self, components: int) -> Pca:
        """The `components` directions of most variance; no more than D."""
        _variance_D, vectors_DD = torch.linalg.eigh(self.products_DD / max(self.n, 1))
        basis_KD = vectors_DD.flip(1)[:, : min(components, len(vectors_DD))].T
        return Pca(self.mean_D.float(), basis_KD.float().contiguous())


@dataclass(frozen=True)
class Pca:
    """Projection onto K principal components around the mean."""

    mean_D: torch.Tensor
    basis_KD: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The projection of x (..., D)."""
        return (x - self.mean_D) @ self.basis_KD.T @ self.basis_KD + self.mean_D

    def to(self, device: str) -> Pca:
        """The same with its tensors on `device`."""
        return Pca(self.mean_D.to(device), self.basis_KD.to(device))


def random_sae(sae: SAE, l0: float, x_BD: torch.Tensor, seed: int = 0) -> SAE:
    """An SAE of the same width and kind with random unit decoder rows and their transpose as encoder, around the mean
    of the rows `x_BD`.

    On these rows it fires `l0` times a row: by its k where `sae` is a TopK, else by one threshold for all features
    (subtracted before the ReLU in a "standard" SAE, else a JumpReLU's, which also stands in for a gated one). The
    encoder has one factor for all features, the one with the least squared error on these rows: without it random
    directions that fire together add up to too much.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_FD = functional.unit_rows(torch.randn(sae.d_sae, sae.d_in, generator=generator))
    b_dec, zero_F = x_BD.double().mean(0).float(), torch.zeros(sae.d_sae)
    kind, k = sae.cfg["architecture"], {}
    tensors = {"W_enc": rows_FD.T.contiguous(), "b_enc": zero_F, "W_dec": rows_FD, "b_dec": b_dec}
    if kind == "topk":
        k = {"k": sae.cfg["k"]}
    else:
        level = _level((x_BD - b_dec) @ rows_FD.T, l0)
        kind = kind if kind == "standard" else "jumprelu"
        tensors |= {"b_enc": zero_F - level} if kind == "standard" else {"threshold": zero_F + level}
    drawn = SAE(checkpoint.config(kind, sae.d_in, sae.d_sae, {}, **k), tensors)
    factor = _factor(x_BD - b_dec, drawn.decode(drawn.encode(x_BD)) - b_dec)
    scaled = {name: tensors[name] * factor for name in ("W_enc", "b_enc", "threshold") if name in tensors}
    return SAE(drawn.cfg, tensors | scaled)


def random_transcoder(sae: SAE, l0: float, x_BD: torch.Tensor, y_BO: torch.Tensor, seed: int = 0) -> SAE:
    """A transcoder of the same width and kind whose encoder has random unit directions around the mean of `x_BD`.

    On these rows it fires `l0` times a row, as a random SAE does. Decoder rows cannot be random too (that would predict
    nothing): each is what regressing the targets `y_BO` on its feature alone gives, and one factor for all of them, the
    one with the least squared error, makes up for features that fire together.
    """
    generator = torch.Generator().manual_seed(seed)
    W_DF = functional.unit_rows(torch.randn(sae.d_sae, sae.d_in, generator=generator)).T.contiguous()
    mean_O = y_BO.double().mean(0).float()
    tensors = {"W_enc": W_DF, "b_enc": -(x_BD.double().mean(0).float() @ W_DF), "b_dec": mean_O}
    kind, k = sae.cfg["architecture"], {}
    if kind == "topk":
        k = {"k": sae.cfg["k"]}
    else:
        level = _level(x_BD @ W_DF + tensors["b_enc"], l0)
        plain = kind in ("standard", "transcoder")
        kind = "transcoder" if plain else "jumprelu_transcoder"
        tensors |= {"b_enc": tensors["b_enc"] - level} if plain else {"threshold": torch.full((sae.d_sae,), level)}
    cfg = checkpoint.config(kind, sae.d_in, sae.d_sae, {}, **k, d_out=sae.d_out, apply_b_dec_to_input=False)
    features_BF = SAE(cfg, tensors).encode(x_BD)
    W_FO = features_BF.T @ (y_BO - mean_O) / features_BF.square().sum(0).clamp(min=1e-12)[:, None]
    factor = _factor(y_BO - mean_O, features_BF @ W_FO)
    return SAE(cfg, tensors | {"W_dec": W_FO * factor})


def _level(pre_BF: torch.Tensor, l0: float) -> float:
    """The positive value that `l0` pre-activations of a row exceed in the mean."""
    wanted = min(max(round(l0 * len(pre_BF)), 1), pre_BF.numel())
    return max(float(pre_BF.flatten().topk(wanted).values[-1]), 0.0)


def _factor(x_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> float:
    """The factor on x_hat with the least squared error (1 where there is nothing to scale)."""
    product, square = float((x_BD * x_hat_BD).double().sum()), float(x_hat_BD.double().square().sum())
    return product / square if product > 0 and square > 0 else 1.0
