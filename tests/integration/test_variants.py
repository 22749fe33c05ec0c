"""Losses of variants of a model: in one pass as in the plain way, in every family, and the unembedding in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, LAYERS

from lensae import model as models
from lensae.model import unembedding, variants
from lensae.model.score import plain_losses
from lensae.model.unembedding import HiddenStates, Unembedding, next_token_losses
from lensae.model.variants import OnePass, variant_losses
from lensae.steering.edits import Replacement, predicted

TEXTS = ["After six weeks of morning runs along the canal", "The tram", "Which matters more: the bar, or the rest?"]
HOOK = "blocks.3.hook_resid_post"


def load(directory, hook: str = HOOK):
    return models.load(models.resolve(str(directory)), [hook])


def replacements(hook: str) -> dict:
    """Variants that differ more or less, zeros and the stream itself among them."""

    def noise(x):
        return x + 0.3 * x.norm(dim=-1, keepdim=True) * torch.linspace(-1, 1, x.shape[-1]).cos()

    functions = {"zero": torch.zeros_like, "shrunk": lambda x: 0.7 * x, "same": lambda x: x, "noise": noise}
    return {name: [Replacement(hook, function)] for name, function in functions.items()}


def documents(model) -> list[list[int]]:
    """Longer and shorter than gemma's sliding window, several of one length, one with an end token inside, one of a
    single token."""
    ids, end = model.text.encode(" ".join(TEXTS) * 2), min(model.end_ids)
    return [ids[:12], ids[:1], ids[:50], [*ids[:9], end, *ids[20:32]], [ids[0], *ids[20:31]], ids[:30]]


def ignored(_tokens: int) -> None:
    """Nobody counts."""


def agree(model, found: dict, edits: dict, sequences: list[list[int]], near: float = 2e-4) -> None:
    expected = dict(plain_losses(model, edits, sequences, ignored))
    assert found.keys() == expected.keys() == set(range(len(sequences)))
    for number, plain in expected.items():
        assert found[number].ce_ST.shape == (1 + len(edits), len(sequences[number]) - 1)
        np.testing.assert_allclose(found[number].ce_ST, plain.ce_ST, atol=near, rtol=near)
        np.testing.assert_allclose(found[number].kl_ST, plain.kl_ST, atol=near, rtol=near)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_pre", HOOK, f"blocks.{LAYERS - 1}.hook_resid_post"])
def test_one_pass_gives_what_one_variant_after_the_other_gives(family, hook, model_dir, monkeypatch):
    monkeypatch.setattr(variants, "LOSS_TOKENS", 60)
    model = load(model_dir(family), hook)
    edits, sequences = replacements(hook), documents(model)
    run = OnePass.of(model, edits)
    assert run.agrees(sequences)
    found = dict(run.losses(sequences, ignored, pass_tokens=150))
    agree(model, found, edits, sequences)
    same = list(edits).index("same")
    for losses in found.values():
        np.testing.assert_allclose(losses.kl_ST[same], 0, atol=1e-5)


def test_a_stream_that_all_documents_share_is_computed_once(model_dir, monkeypatch):
    model = load(model_dir("llama"))
    edits, sequences, left_out = replacements(HOOK), documents(model), []
    run = OnePass._run

    def noted(self, numbers, *rest):
        one = run(self, numbers, *rest)
        left_out.append((numbers, [list(edits)[number] for number in one.same], len(one.hidden_SND)))
        return one

    monkeypatch.setattr(OnePass, "_run", noted)
    agree(model, dict(OnePass.of(model, edits).losses(sequences, ignored, pass_tokens=1)), edits, sequences)
    for numbers, names, variants_run in left_out:
        reference, inside = numbers == [2], numbers == [3]  # the longest; the one with an end token inside
        begins_alike = sequences[numbers[0]] == sequences[2][: len(sequences[numbers[0]])]
        expected = [] if reference or inside else list(edits) if begins_alike else ["zero"]
        assert names == expected and variants_run == 1 + len(edits) - len(names)


def test_tokens_are_counted_as_they_go_through_the_model(model_dir):
    model, counted = load(model_dir("llama")), []
    sequences = documents(model)
    dict(variant_losses(model, sequences, replacements(HOOK), counted.append))
    assert sum(counted) == sum(map(len, sequences))


def test_hooks_and_settings_are_as_before(model_dir):
    model = load(model_dir("llama"))
    ids = torch.tensor([documents(model)[0]])
    before, precision = model.run(input_ids=ids).logits, torch.get_float32_matmul_precision()
    losses = variant_losses(model, documents(model), replacements(HOOK), ignored)
    next(losses)
    assert torch.get_float32_matmul_precision() == precision and not torch.is_inference_mode_enabled()
    torch.testing.assert_close(model.run(input_ids=ids).logits, before)


def refused(model, edits: dict, sequences: list[list[int]]) -> None:
    """The losses are those of the plain way, exactly."""
    run = OnePass.of(model, edits)
    assert run is None or not run.agrees(sequences)
    found = dict(variant_losses(model, sequences, edits, ignored))
    for number, plain in plain_losses(model, edits, sequences, ignored):
        np.testing.assert_array_equal(found[number].ce_ST, plain.ce_ST)
        np.testing.assert_array_equal(found[number].kl_ST, plain.kl_ST)


def test_capped_logits(model_dir):
    model = load(model_dir("gemma3"))
    model.config.final_logit_softcapping = 3.0
    edits, sequences = replacements(HOOK), documents(model)
    run = OnePass.of(model, edits)
    assert run.unembedding.softcap == 3.0 and run.agrees(sequences)
    agree(model, dict(run.losses(sequences, ignored)), edits, sequences)


def test_logits_that_are_something_else_too(model_dir):
    """A family that scales its logits, say."""
    model = load(model_dir("llama"))

    def scaled(_network, _arguments, output):
        output.logits = 0.5 * output.logits
        return output

    model.network.register_forward_hook(scaled)
    refused(model, replacements(HOOK), documents(model))


def test_blocks_that_see_more_than_the_stream(model_dir):
    """What reaches them from before the hook is that of the clean model in one pass: the tokens' ids, say."""
    model = load(model_dir("llama"))
    ids: list[torch.Tensor] = []
    model.network.model.embed_tokens.register_forward_hook(lambda _m, arguments, out: ids.append(out))
    late = model.network.model.layers[6]
    late.register_forward_hook(lambda _m, _arguments, out: out + ids[-1].flip(0).cumsum(0))
    edits, sequences = replacements(HOOK), documents(model)
    assert OnePass.of(model, edits) is not None
    refused(model, edits, sequences)


def test_variants_that_differ_elsewhere(model_dir):
    model = models.load(models.resolve(str(model_dir("llama"))), [HOOK, "blocks.3.hook_mlp_out"])
    two_hooks = {"predicted": predicted("blocks.2.hook_resid_post", HOOK, lambda x: 0.9 * x)}
    other = {"shrunk": [Replacement("blocks.3.hook_mlp_out", lambda x: 0.5 * x)]}
    for edits in (two_hooks, other):
        assert OnePass.of(model, edits) is None
        refused(model, edits, documents(model))


@pytest.mark.parametrize("entries, rows", [(7, 5), (64, 1), (1000, 1000)])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_the_unembedding_in_blocks(entries, rows, softcap, monkeypatch):
    monkeypatch.setattr(unembedding, "CPU_ENTRIES", entries)
    monkeypatch.setattr(unembedding, "CPU_ROWS", rows)
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(90, 12, generator=random), torch.randn(90, generator=random)
    clean, other = torch.randn(33, 12, generator=random), torch.randn(33, 12, generator=random)
    few, index = torch.randn(4, 12, generator=random), torch.arange(33) % 4
    target = torch.randint(0, 90, (33,), generator=random)
    states = [HiddenStates(other), HiddenStates(few, index), HiddenStates(clean.clone())]
    ce, kl = next_token_losses(Unembedding(weight, bias, softcap), clean, states, target)

    def logp(h: torch.Tensor) -> torch.Tensor:
        z = h.double() @ weight.double().T + bias.double()
        return (z if softcap is None else softcap * (z / softcap).tanh()).log_softmax(-1)

    p = logp(clean)
    for number, hidden in enumerate((clean, other, few[index], clean)):
        q = logp(hidden)
        torch.testing.assert_close(ce[number], -q.gather(1, target[:, None])[:, 0], atol=2e-5, rtol=1e-5)
        if number:
            torch.testing.assert_close(kl[number - 1], (p.exp() * (p - q)).sum(-1), atol=2e-5, rtol=1e-5)
    assert not kl[2].any(), "nothing changed"
    alone, none = next_token_losses(Unembedding(weight, bias, softcap), clean, [], target)
    torch.testing.assert_close(alone, ce[:1])
    assert none.shape == (0, 33)
