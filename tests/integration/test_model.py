"""The model: both hooked routes against plain transformers, over every family."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, LAYERS, WIDTH

from lensae import model as models
from lensae.core.errors import UserError
from lensae.core.records import GENERATED, PROMPT
from lensae.model.generate import Sampling, generate, sample, uniforms
from lensae.model.read import read, read_padded, read_side_by_side

TEXTS = ["After six weeks of morning runs along the canal", "The tram", "Which matters more: the bar, or the rest?"]
RESIDUAL = [f"blocks.{n}.hook_resid_post" for n in range(LAYERS)]


def load(directory, hooks=RESIDUAL, dtype: str = "float32"):
    return models.load(models.resolve(str(directory)), hooks, dtype=dtype)


def hidden_states(directory, ids: list[int]):
    """The plain transformers model's own stream: (the state after each block, the model's final norm).

    transformers gives the last of them behind the final norm.
    """
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.no_grad():
        states = plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return [state[0] for state in states[1:]], plain.transformer.ln_f if directory.name.endswith(
        "gpt2"
    ) else plain.model.norm


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_plain_transformers_at_every_layer(family, model_dir):
    model = load(model_dir(family))
    assert type(model.hooked).__name__ == "ResidualStream"
    ids = [model.text.encode(text) for text in TEXTS]
    for written in read(model, ids, RESIDUAL):
        expected, final_norm = hidden_states(model_dir(family), written.ids)
        for number, (hook, state) in enumerate(zip(RESIDUAL, expected, strict=True)):
            found = torch.from_numpy(written.activations[hook])
            assert found.shape == (len(written.ids), WIDTH)
            with torch.no_grad():
                found = final_norm(found) if number == LAYERS - 1 else found
            torch.testing.assert_close(found, state, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_routes_give_the_same(family, model_dir):
    other = "blocks.3.hook_mlp_out"
    fast, general = load(model_dir(family)), load(model_dir(family), [*RESIDUAL, other])
    assert type(general.hooked).__name__ == "TransformerBridge"
    ids = [fast.text.encode(text) for text in TEXTS]
    a, b = read(fast, ids, RESIDUAL), read(general, ids, [*RESIDUAL, other])
    for x, y in zip(a, b, strict=True):
        for hook in RESIDUAL:
            np.testing.assert_allclose(x.activations[hook], y.activations[hook], rtol=1e-3, atol=1e-3)
    assert general.widths([other]) == {other: WIDTH}


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_captures_what_reading_gives(family, model_dir):
    """Ragged batch, KV cache, ends at different lengths: the same as a plain uncached pass over the finished text."""
    model, hooks = load(model_dir(family)), RESIDUAL[3:6]
    prompts = [model.text.encode(text) for text in TEXTS]
    written = generate(model, prompts, Sampling(12, 1.0, 50, 3), range(len(prompts)), hooks)
    assert all(0 < len(w.new_ids) <= 12 for w in written)
    for w, again in zip(written, read(model, [w.ids for w in written], hooks), strict=True):
        for hook in hooks:
            assert w.activations[hook].shape == (len(w.ids), WIDTH)
            np.testing.assert_allclose(w.activations[hook], again.activations[hook], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_a_batch_of_one_gives_the_same(family, model_dir):
    model, hook = load(model_dir(family)), RESIDUAL[4]
    prompts = [model.text.encode(text) for text in TEXTS]
    batched = generate(model, prompts, Sampling(10, 0.8, 50, 5), [7, 8, 9], [hook])
    for prompt, stream, expected in zip(prompts, [7, 8, 9], batched, strict=True):
        alone = generate(model, [prompt], Sampling(10, 0.8, 50, 5), [stream], [hook])[0]
        assert alone.new_ids == expected.new_ids
        np.testing.assert_allclose(alone.activations[hook], expected.activations[hook], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_side_by_side_are_read_as_each_alone(family, model_dir):
    """Longer and shorter than gemma's sliding window, several of one length, and one of a single token."""
    model, hooks = load(model_dir(family)), RESIDUAL[2:5]
    ids = model.text.encode(" ".join(TEXTS) * 3)
    documents = [ids[:1], ids[:40], ids[5:45], ids[3:9], ids[:90], ids[7:13]]
    packed = read_side_by_side(model, documents, hooks)
    for one, document in zip(packed, documents, strict=True):
        alone = read_padded(model, [document], hooks)[0]
        for hook in hooks:
            assert one.activations[hook].shape == (len(document), WIDTH)
            np.testing.assert_allclose(one.activations[hook], alone.activations[hook], rtol=1e-3, atol=1e-4)
    read(model, documents[:2], hooks)
    assert model.side_by_side


def test_edits_know_the_tokens_of_documents_side_by_side(model_dir):
    model, edit = load(model_dir("llama")), Shift()
    documents = [model.text.encode(text) for text in TEXTS]
    found = read_side_by_side(model, documents, [RESIDUAL[4]], [edit])
    expected = [-1 if token in model.text.special_ids else PROMPT for ids in documents for token in ids]
    assert edit.seen[0].tolist() == [expected]
    padded = read_padded(model, documents, [RESIDUAL[4]], [Shift()])
    for one, other in zip(found, padded, strict=True):
        np.testing.assert_allclose(one.activations[RESIDUAL[4]], other.activations[RESIDUAL[4]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_mixes_tokens_elsewhere_is_read_with_padding(dtype, model_dir):
    model, hook = load(model_dir("llama"), dtype=dtype), RESIDUAL[4]
    documents = [model.text.encode(text) for text in TEXTS]
    expected = [w.activations[hook] for w in read(model, documents, [hook])]
    assert model.side_by_side
    block = model.network.model.layers[2]
    mixing = block.register_forward_hook(lambda m, args, out: out + out.cumsum(1))
    model.side_by_side = None
    mixed = [w.activations[hook] for w in read(model, documents[:1], [hook])]
    assert model.side_by_side is False and not np.allclose(mixed[0], expected[0])
    mixing.remove()
    near = 1e-4 if dtype == "float32" else 0.05
    for found, plain in zip(read(model, documents, [hook]), expected, strict=True):
        assert np.linalg.norm(found.activations[hook] - plain) < near * np.linalg.norm(plain)


def test_greedy_equals_transformers_generate(model_dir):
    from transformers import AutoModelForCausalLM

    model = load(model_dir("llama"))
    prompt = model.text.encode(TEXTS[0])
    plain = AutoModelForCausalLM.from_pretrained(model_dir("llama")).eval()
    expected = plain.generate(torch.tensor([prompt]), max_new_tokens=15, do_sample=False, pad_token_id=1)
    ours = generate(model, [prompt], Sampling(15, 0.0), [0])[0]
    theirs = [t for t in expected[0, len(prompt) :].tolist() if t not in model.text.eos_ids]
    assert ours.new_ids == theirs


def test_every_end_token_of_the_model_ends_a_text(model_dir):
    """Instruction-tuned families name several in their generation settings."""
    model = load(model_dir("llama"))
    prompt = model.text.encode(TEXTS[0])
    free = generate(model, [prompt], Sampling(12, 1.0, 50, 1), [0])[0].new_ids
    model.network.generation_config.eos_token_id = [1, free[4]]
    stopped = generate(model, [prompt], Sampling(12, 1.0, 50, 1), [0])[0].new_ids
    assert stopped == free[: free.index(free[4])]


class Shift:
    """An edit that adds a constant to every token it may touch, and notes what it saw."""

    hook = RESIDUAL[4]

    def __init__(self, origin=PROMPT, by=3.0):
        self.origin, self.by, self.seen = origin, by, []

    def apply(self, x_BTD, origin_BT):
        self.seen.append(origin_BT.clone())
        return torch.where((origin_BT >= self.origin)[..., None], x_BTD + self.by, x_BTD)


@pytest.mark.parametrize("hooks", [RESIDUAL, [*RESIDUAL, "blocks.0.hook_mlp_out"]], ids=["fast", "general"])
@pytest.mark.parametrize("origin", [PROMPT, GENERATED])
def test_cached_and_uncached_generation_agree_under_an_edit(hooks, origin, model_dir):
    model = load(model_dir("llama"), hooks)
    prompt = model.text.encode(TEXTS[0])
    cached = generate(model, [prompt], Sampling(10, 0.0), [0], edits=[Shift(origin)])[0].new_ids
    assert cached != generate(model, [prompt], Sampling(10, 0.0), [0])[0].new_ids
    from lensae.model.score import next_token_logprobs

    ids = list(prompt)
    for _ in range(len(cached)):
        logp = next_token_logprobs(model, [ids], [Shift(origin)], [len(prompt)])[0]
        ids.append(int(logp[-1].argmax()))
    assert ids[len(prompt) :] == cached


def test_what_is_captured_is_edited_and_hooks_are_gone_afterwards(model_dir):
    model = load(model_dir("llama"))
    prompt = model.text.encode(TEXTS[0])
    plain = read(model, [prompt], [RESIDUAL[4]])[0].activations[RESIDUAL[4]]
    edited = read(model, [prompt], [RESIDUAL[4]], [Shift()])[0].activations[RESIDUAL[4]]
    np.testing.assert_allclose(edited[1:], plain[1:] + 3.0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(edited[0], plain[0])  # BOS is never edited
    np.testing.assert_array_equal(read(model, [prompt], [RESIDUAL[4]])[0].activations[RESIDUAL[4]], plain)


def test_padding_and_special_tokens_are_marked(model_dir):
    model, edit = load(model_dir("llama")), Shift()
    prompts = [model.text.encode(text) for text in TEXTS]
    generate(model, prompts, Sampling(3, 1.0), range(3), edits=[edit])
    first = edit.seen[0]
    longest = max(map(len, prompts))
    for row, prompt in zip(first.tolist(), prompts, strict=True):
        pads = longest - len(prompt)
        assert row == [-1] * (pads + 1) + [PROMPT] * (len(prompt) - 1)
    assert set(edit.seen[1].flatten().tolist()) == {GENERATED}


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    u = torch.linspace(0, 1, 20001)[:-1]
    drawn = sample(logits.expand(len(u), -1), u, Sampling(1, temperature=0.5, top_k=3))
    share = torch.bincount(drawn, minlength=4) / len(u)
    expected = torch.tensor([4.0, 2.0, 0.0]).softmax(0)
    torch.testing.assert_close(share[:3], expected, atol=1e-3, rtol=0)
    assert share[3] == 0


def test_random_streams_are_apart_and_repeatable():
    assert (uniforms(1, 2, 5) == uniforms(1, 2, 5)).all()
    assert not np.isclose(uniforms(1, 2, 5), uniforms(1, 3, 5)).any()
    assert not np.isclose(uniforms(1, 2, 5), uniforms(2, 2, 5)).any()


def test_unknown_hook_names_the_nearest(model_dir):
    with pytest.raises(UserError) as error:
        load(model_dir("gpt2"), ["blocks.3.hook_resid_pst"])
    assert "blocks.3.hook_resid_post" in error.value.hint
    with pytest.raises(UserError):
        load(model_dir("gpt2"), [f"blocks.{LAYERS}.hook_resid_post"])


def test_a_hook_without_a_vector_per_token_is_refused(model_dir):
    model = load(model_dir("gpt2"), ["blocks.3.attn.hook_pattern"])
    with pytest.raises(UserError, match=r"one vector per token|never fires"):
        model.widths(["blocks.3.attn.hook_pattern"])


def test_precision_is_restored(model_dir):
    before = torch.get_float32_matmul_precision()
    model = load(model_dir("gpt2"))
    read(model, [model.text.encode("a")], RESIDUAL[:1])
    assert torch.get_float32_matmul_precision() == before


def test_prompt_longer_than_the_context(model_dir):
    model = load(model_dir("gpt2"))
    with pytest.raises(UserError, match="reads at most 256"):
        generate(model, [[5] * 250], Sampling(10), [0])


@pytest.mark.parametrize("name", ["no/such-model", "gpt2-nope", "not a name!", "x" * 200])
def test_unknown_model_fails_at_once_and_helps(name, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "LENSAE_STORE": str(tmp_path)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "main.py", "collect", name],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert time.monotonic() - started < 5 + 2, "the machine may be slow, the network must not be waited for"
    assert "smollm2-135m" in done.stderr and "Traceback" not in done.stderr


def test_directories_that_are_no_models(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        models.resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="safetensors"):
        models.resolve(str(tmp_path))
    with pytest.raises(UserError, match="no file"):
        models.resolve(str(tmp_path / "missing.gguf"))


def change_config(**values) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def drop_a_tensor(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def halve_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("[]"), "does not hold a JSON object"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no model_type"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be read"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}'),
            "b is miss",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer of"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "tokenizer of"),
        (halve_the_weights, "cannot be read"),
        (drop_a_tensor, "lack model.layers.2.mlp.down_proj.weight"),
        (change_config(model_type="nonsense"), "nonsense"),
        (change_config(hidden_size="64"), "hidden_size '64'"),
        (change_config(hidden_size=10**9), "hidden_size 1000000000, which no tensor has"),
        (change_config(vocab_size=[]), "vocab_size"),
        (change_config(num_hidden_layers=10**9), "num_hidden_layers 1000000000"),
        (change_config(num_attention_heads=0), "cannot be loaded"),
    ],
)
def test_damaged_model_directories(model_dir, tmp_path, change, message):
    """Sizes that the weights do not have are refused before anything of that size is made."""
    folder = tmp_path / "model"
    shutil.copytree(model_dir("llama"), folder)
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert "\n" not in error.value.what


@pytest.fixture(scope="module")
def smollm2():
    source = models.resolve()
    return models.load(source, ["blocks.15.hook_resid_post"])


def test_the_embedded_model_is_a_language_model(smollm2):
    assert (smollm2.n_layers, smollm2.d_model) == (30, 576)
    assert smollm2.default_hook() == "blocks.15.hook_resid_post"
    from lensae.model.score import next_token_logprobs
    from lensae.steering.measure import cross_entropy, perplexity

    def perplexity_of(text: str) -> float:
        ids = smollm2.text.encode(text)
        logp = next_token_logprobs(smollm2, [ids])[0]
        return perplexity(cross_entropy(logp[:-1], torch.tensor(ids[1:])).tolist())

    text = "The capital of France is Paris, and the capital of Italy is Rome."
    assert perplexity_of(text) < 25
    assert perplexity_of(" ".join(reversed(text.split()))) > 5 * perplexity_of(text)
    answer = generate(smollm2, [smollm2.text.encode("The capital of France is")], Sampling(1, 0.0), [0])[0]
    assert smollm2.text.decode(answer.new_ids) == " Paris"


def test_fast_products_are_accurate_on_the_embedded_model(smollm2):
    """Relative error against float32 at PyTorch's default below 1e-4, tokens of a real text."""
    ids = smollm2.text.encode("When light passes from air into water it slows down and bends towards the normal.")
    hook = "blocks.15.hook_resid_post"
    fast = read(smollm2, [ids], [hook])[0].activations[hook][1:]
    exact = []
    smollm2.add_hook(hook, lambda x, hook: exact.append(x[0, 1:].numpy().copy()))
    with torch.inference_mode():
        smollm2.forward(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
    smollm2.reset_hooks()
    assert np.linalg.norm(fast - exact[0]) / np.linalg.norm(exact[0]) < 1e-4
    norms = np.linalg.norm(exact[0], axis=1)
    assert norms.max() < 10 * np.median(norms), "the attention sink lies on BOS and nowhere else"
