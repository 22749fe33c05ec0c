"""A sparse autoencoder as a function on raw activations.

Shapes: B rows (any leading shape; B1 is one more), D d_model, F features, N pairs of a row and a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from lensae.sae import functional
from lensae.sae.kernels import Active, Features, Pattern, decode, encode_above, encode_topk


def _linear(x: torch.Tensor, cfg: dict, tensors: dict) -> torch.Tensor:
    return x @ tensors["W_enc"] + tensors["b_enc"]


def _gated(x: torch.Tensor, cfg: dict, tensors: dict) -> torch.Tensor:
    opens = x @ tensors["W_enc"] + tensors["b_gate"] > 0
    return (x @ (tensors["W_enc"] * tensors["r_mag"].exp()) + tensors["b_mag"]).relu() * opens


# How each architecture of the SAELens 6 layout turns centred rows into features; transcoders are named by their own.
ENCODERS: Mapping[str, Callable] = {
    "standard": lambda x, cfg, tensors: _linear(x, cfg, tensors).relu(),
    "topk": lambda x, cfg, tensors: functional.topk(_linear(x, cfg, tensors), int(cfg["k"])),
    "jumprelu": lambda x, cfg, tensors: functional.jumprelu(_linear(x, cfg, tensors), tensors["threshold"]),
    "gated": _gated,
}
ENCODERS = {**ENCODERS, "transcoder": ENCODERS["standard"], "jumprelu_transcoder": ENCODERS["jumprelu"]}


def _sparse(features: Features) -> Active:
    """Features that are sparse, as those of a product with no expected density are."""
    assert isinstance(features, Active)
    return features


def _sparse_linear(x_BD: torch.Tensor, shift_D: torch.Tensor, cfg: dict, tensors: dict) -> Active:
    return _sparse(encode_above(x_BD, shift_D, tensors["W_enc"].T, tensors["b_enc"]))


def _sparse_topk(x_BD: torch.Tensor, shift_D: torch.Tensor, cfg: dict, tensors: dict) -> Active:
    return encode_topk(x_BD, shift_D, tensors["W_enc"].T, tensors["b_enc"], int(cfg["k"]))


def _sparse_jumprelu(x_BD: torch.Tensor, shift_D: torch.Tensor, cfg: dict, tensors: dict) -> Active:
    return _sparse(encode_above(x_BD, shift_D, tensors["W_enc"].T, tensors["b_enc"], tensors["threshold"]))


def _sparse_gated(x_BD: torch.Tensor, shift_D: torch.Tensor, cfg: dict, tensors: dict) -> Active:
    """The magnitude is computed from the product that the gate took: the two differ by a factor and biases."""
    opened = _sparse(encode_above(x_BD, shift_D, tensors["W_enc"].T, tensors["b_gate"]))
    b_gate_N, r_mag_N, b_mag_N = (opened.per_pair(tensors[name]) for name in ("b_gate", "r_mag", "b_mag"))
    return opened.with_value(((opened.value - b_gate_N) * r_mag_N.exp() + b_mag_N).relu())


# The same through the sparse kernels: the matrix (B, F) is never there as a whole.
SPARSE_ENCODERS: Mapping[str, Callable] = {
    "standard": _sparse_linear,
    "topk": _sparse_topk,
    "jumprelu": _sparse_jumprelu,
    "gated": _sparse_gated,
    "transcoder": _sparse_linear,
    "jumprelu_transcoder": _sparse_jumprelu,
}


@dataclass(frozen=True)
class SAE:
    """Weights and the activation function that belongs to them: `cfg` is the dictionary of cfg.json.

    `tensors` holds W_enc (D, F), W_dec (F, D), b_dec (D) and the vectors (F) that its architecture has: b_enc; b_enc
    and threshold (jumprelu); b_gate, b_mag and r_mag (gated). A transcoder's W_dec and b_dec have the width d_out.
    """

    cfg: dict
    tensors: dict[str, torch.Tensor] = field(repr=False)

    @property
    def d_in(self) -> int:
        """D, the width of the activations."""
        return int(self.cfg["d_in"])

    @property
    def d_sae(self) -> int:
        """F, the number of features."""
        return int(self.cfg["d_sae"])

    @property
    def W_dec(self) -> torch.Tensor:
        """The decoder (F, D): row i is the direction that feature i writes."""
        return self.tensors["W_dec"]

    @property
    def d_out(self) -> int:
        """The width of what is decoded: D, but in a transcoder."""
        return int(self.cfg.get("d_out", self.d_in))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Features of raw activations: (..., D) -> (..., F), in the units of the activations."""
        if self.cfg.get("apply_b_dec_to_input", True):
            x = x - self.tensors["b_dec"]
        return ENCODERS[self.cfg["architecture"]](x, self.cfg, self.tensors)

    @torch.no_grad()
    def encode_sparse(self, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The features of raw activations (B, D) that are not zero: the row, the feature and the value of each (N,), in
        order of rows and in each row in no order.

        They are those of `encode` but for rounding: a product may be summed in another order. No gradients.
        """
        shift_D = self.tensors["b_dec"] if self.cfg.get("apply_b_dec_to_input", True) else x_BD.new_zeros(self.d_in)
        active = SPARSE_ENCODERS[self.cfg["architecture"]](x_BD, shift_D, self.cfg, self.tensors)
        row_N, feature_N, value_N = active.pattern.row_N, active.pattern.index_N, active.value
        if bool((value_N != 0).all()):
            return row_N, feature_N, value_N
        keep_N = value_N != 0
        return row_N[keep_N], feature_N[keep_N], value_N[keep_N]

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        """The reconstruction f W_dec + b_dec: (..., F) -> (..., D)."""
        return features @ self.W_dec + self.tensors["b_dec"]

    @torch.no_grad()
    def decode_sparse(
        self, rows: int, row_N: torch.Tensor, feature_N: torch.Tensor, value_N: torch.Tensor
    ) -> torch.Tensor:
        """The reconstruction (rows, D) of features as `encode_sparse` gives them. No gradients."""
        indptr_B1 = torch.nn.functional.pad(torch.bincount(row_N, minlength=rows).cumsum(0), (1, 0))
        return decode(Active(Pattern(indptr_B1, feature_N, self.d_sae), value_N), self.W_dec, self.tensors["b_dec"])

    def to(self, device: str) -> SAE:
        """The same SAE with its tensors on `device`."""
        return SAE(self.cfg, {name: tensor.to(device) for name, tensor in self.tensors.items()})
