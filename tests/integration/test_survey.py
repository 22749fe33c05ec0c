"""The command survey: what it measures is what transformers computes, and what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import figures_by_formula

from lensae.stages import survey

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_help_is_light_and_has_examples(lensae):
    status, out, _err = lensae("survey", "--help")
    assert status == 0 and "Examples" in out and "survey gpt2-medium" in out


def stream_by_hand(folder: Path, block: int, most: int) -> np.ndarray:
    """What transformers itself says comes out of a block, for the first `most` tokens of themes, BOS left out."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    path = Path(__file__).resolve().parents[2] / "corpora" / "themes.jsonl"
    rows, left = [], most
    for line in path.read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids[:left]
        with torch.inference_mode():
            states = model(torch.tensor([[tokenizer.bos_token_id, *ids]]), output_hidden_states=True).hidden_states
        rows.append(states[block + 1][0, 1:].numpy())
        left -= len(ids)
        if not left:
            return np.concatenate(rows)
    raise AssertionError("themes is too short")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_command_measures_what_the_model_computes(family, lensae, store, model_dir):
    status, out, err = lensae("survey", model_dir(family), "--max-tokens", 300, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["tokens"] == 300 and found["d_model"] == 64 and found["corpus"] == "themes"
    assert [b["hook"] for b in found["blocks"]] == [f"blocks.{n}.hook_resid_post" for n in range(8)]
    for block in (0, 4):
        expected = vars(figures_by_formula(stream_by_hand(model_dir(family), block, 300)))
        assert {name: found["blocks"][block][name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-3)
    middle = found["blocks"][2:6]
    best = max(middle, key=lambda b: b["effective_rank"])
    assert found["choice"]["hook"] == best["hook"] and found["choice"]["dtype"] == "float16"
    assert found["choice"]["why"].startswith("in the middle third")
    picture = Path(found["figure"])
    assert picture == store.parent / "experiments" / "results" / f"survey-tiny-{family}.png"
    assert picture.read_bytes().startswith(PNG) and picture.stat().st_size > 10_000


def test_the_table(lensae, store, model_dir):
    status, out, err = lensae("survey", model_dir("llama"), "--corpus", "probes", "--max-tokens", 60)
    assert status == 0, err
    lines = out.splitlines()
    assert "eff. rank" in lines[0] and [line.split()[0] for line in lines[1:9]] == [str(n) for n in range(8)]
    chosen = [line for line in lines if line.endswith("chosen")]
    assert len(chosen) == 1
    hook = f"blocks.{chosen[0].split()[0]}.hook_resid_post"
    assert f"{hook}: in the middle third" in out and "few tokens for 64 dimensions" in out
    following = lines[-1].removeprefix("next: python main.py ").split()
    assert following == ["collect", str(model_dir("llama")), "--hook", hook, "--corpus", "probes"]
    assert lensae(*following, "--max-new-tokens", 2)[0] == 0


def test_a_long_text_is_read_in_windows(lensae, store, model_dir, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("The tram was late again and nobody minded. " * 200)
    found = json.loads(lensae("survey", model_dir("gpt2"), "--corpus", path, "--json")[1])
    assert found["documents"] == 1 and found["tokens"] > 2 * 256, "all of it, though the model reads 256 at a time"
    found = json.loads(lensae("survey", model_dir("gpt2"), "--corpus", path, "--json", "--max-tokens", 257)[1])
    assert found["tokens"] == 257


def test_the_bound_on_tokens_is_exact(model_dir):
    """Wherever it falls: inside a document, at its end, or one token on."""
    from types import SimpleNamespace

    from lensae import model as models
    from lensae.corpus.prompts import load

    model = SimpleNamespace(text=models.load_tokenizer(models.resolve(str(model_dir("llama")))), context=20)
    corpus = load("themes")
    for most in range(2, 120):
        windows = list(survey._windows(model, corpus, most))
        assert sum(len(w.ids) - 1 for w in windows) == most
        assert all(w.ids[0] == model.text.bos_id and 2 <= len(w.ids) <= 20 for w in windows)


def with_larger_weights(folder: Path, copy: Path, factor: float) -> Path:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.2.mlp.down_proj.weight"
    weights[name] = np.clip(weights[name].astype(np.float64) * factor, -3e38, 3e38).astype(np.float32)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_a_stream_that_float16_cannot_hold(lensae, store, model_dir, tmp_path):
    status, out, err = lensae("survey", with_larger_weights(model_dir("llama"), tmp_path / "big", 1e6))
    text = " ".join(out.split())
    assert status == 0, err
    assert "so collect with --dtype float32" in text and text.endswith("--dtype float32")


def test_a_stream_that_is_not_finite(lensae, store, model_dir, tmp_path):
    status, out, err = lensae("survey", with_larger_weights(model_dir("llama"), tmp_path / "broken", 1e39))
    assert status == 1 and not out and "Traceback" not in err
    assert "block 2 (blocks.2.hook_resid_post) is not finite" in err and "in the document '" in err
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/model"], "neither a model id"),
        (["--corpus", "nope"], "no corpus named 'nope'"),
        (["--max-tokens", 1], "--max-tokens cannot be 1"),
    ],
    ids=str,
)
def test_bad_input(arguments, message, lensae, store):
    status, out, err = lensae("survey", *arguments)
    assert status == 2 and message in err and not out


def test_too_little_text(lensae, store, model_dir, tmp_path):
    (tmp_path / "short.txt").write_text("a\n")
    status, _out, err = lensae("survey", model_dir("llama"), "--corpus", tmp_path / "short.txt")
    assert status == 2 and "too little text" in err
