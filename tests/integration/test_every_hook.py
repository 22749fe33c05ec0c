"""Every kind of hook that can be collected can be evaluated, steered and read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lensae import model as models
from lensae.core.paths import find_set
from lensae.core.records import PROMPT
from lensae.model.read import read
from lensae.sae import functional
from lensae.sae.base import SAE
from lensae.sae.formats import saelens
from lensae.store.reader import SetReader

RESIDUAL = ["hook_resid_pre", "hook_resid_mid", "hook_resid_post"]
KINDS = [*RESIDUAL, "hook_attn_out", "hook_mlp_out", "attn.hook_z", "attn.hook_v", "mlp.hook_post"]
HOOKS = [f"blocks.3.{kind}" for kind in KINDS]


@pytest.fixture(scope="module")
def collected(tmp_path_factory, model_dir) -> Path:
    """A store with a set of every kind of hook, all of the same tokens."""
    from lensae.stages.collect import run as collect

    folder = tmp_path_factory.mktemp("kinds") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSAE_STORE", str(folder))
        options = collect.CollectOptions(
            model=str(model_dir("llama")), hooks=tuple(HOOKS), corpus="probes", max_new_tokens=12, generate=True
        )
        collect.collect(options, "python main.py collect")
    return folder


@pytest.fixture
def use_collected(collected, monkeypatch) -> Path:
    """That store as the current one."""
    monkeypatch.setenv("LENSAE_STORE", str(collected))
    return collected


def sae_for(x: torch.Tensor, features: int = 48) -> SAE:
    """An SAE that reconstructs the rows to some extent: random directions around their mean."""
    torch.manual_seed(3)
    rows = functional.unit_rows(torch.randn(features, x.shape[1]))
    tensors = {"W_enc": rows.T.contiguous(), "b_enc": torch.zeros(features), "W_dec": rows, "b_dec": x.mean(0)}
    return SAE(saelens.config("topk", x.shape[1], features, {}, k=8), tensors)


@pytest.mark.parametrize("hook", HOOKS)
def test_evaluated_steered_and_read_back(hook, lensae, use_collected, tmp_path):
    name = f"tiny-llama/{hook}"
    reader = SetReader(find_set(name))
    rows = torch.from_numpy(np.concatenate(list(reader.document_rows(reader.everything()))))
    saelens.save(tmp_path / "sae", sae_for(rows))
    chosen = ("--set", name, "--sae", tmp_path / "sae")

    status, out, err = lensae("evaluate", *chosen, "--json")
    assert status == 0, err
    loss = json.loads(out)["loss"]
    assert loss["kl_zero"] > 1e-3 and loss["kl_sae"] > 0 and np.isfinite(loss["ce_recovered"])

    assert lensae("index", *chosen)[0] == 0
    listed = json.loads(lensae("features", "list", *chosen, "--k", 1, "--json")[1])
    arguments = ("--prompt", "The tram", "--samples", 2, "--max-new-tokens", 8, "--scale", 6)
    status, out, err = lensae("steer", "--feature", listed[0]["feature"], *chosen, *arguments, "--json")
    assert status == 0, err
    unsteered, steered = json.loads(out)["runs"][:2]
    assert steered["readback"] > unsteered["readback"] and steered["kl"] > 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_an_edit_sees_and_gives_the_vectors_that_reading_gives(family, model_dir):
    """attn.hook_z holds (B, T, heads, channels)."""
    hook = "blocks.3.attn.hook_z"
    model = models.load(models.resolve(str(model_dir(family))), [hook])
    ids = [model.text.encode("The tram was late, and so were we."), model.text.encode("Rain")]
    plain = read(model, ids, [hook])

    class Doubled:
        def __init__(self):
            self.hook = hook

        def apply(self, x_BTW, origin_BT):
            return torch.where((origin_BT >= PROMPT)[..., None], 2 * x_BTW + 1, x_BTW)

    for one, before in zip(read(model, ids, [hook], [Doubled()]), plain, strict=True):
        x, expected = one.activations[hook], before.activations[hook]
        assert x.shape == (len(one.ids), 64)
        np.testing.assert_allclose(x[1:], 2 * expected[1:] + 1, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(x[0], expected[0], rtol=1e-4, atol=1e-4)  # BOS is never edited


def test_a_hook_that_needs_a_setting_is_refused(lensae, model_dir):
    status, _out, err = lensae("collect", model_dir("llama"), "--hook", "blocks.3.hook_mlp_in")
    message = " ".join(err.split())
    assert status == 2 and "cannot use this hook: Cannot add hook blocks.3.hook_mlp_in" in message, message
