"""survey: the streamed figures against direct formulas, the rule that chooses, and the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lensae.core.errors import LensaeError
from lensae.interpret.moments import Figures, Moments
from lensae.stages import survey
from lensae.stages.survey import Block, choose, middle_third

PNG = b"\x89PNG\r\n\x1a\n"


def figures_of(x_BD: np.ndarray, sizes: list[int] | None = None) -> Figures:
    moments = Moments(x_BD.shape[1])
    for chunk in np.split(x_BD, np.cumsum(sizes or [])):
        moments.add(chunk)
    return moments.result()


def by_formula(x_BD: np.ndarray) -> Figures:
    """The same figures from all rows at once."""
    x = x_BD.astype(np.float64)
    value_D = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))[::-1].clip(min=0)
    share_D = value_D / value_D.sum()
    p = share_D[share_D > 0]
    return Figures(
        len(x),
        np.abs(x).sum(),
        np.abs(x).max(),
        np.abs(x).mean(),
        np.sqrt((x**2).sum(1)).mean(),
        share_D[0],
        share_D[:10].sum(),
        np.nanmean(stats.kurtosis(x, axis=0)),
        np.abs(x).max() / 65504,
        np.exp(-(p * np.log(p)).sum()),
    )


def cloud(rows: int = 700, width: int = 24, seed: int = 0) -> np.ndarray:
    """Correlated, heavy-tailed dimensions of different means and sizes, a few of them far from zero."""
    random = np.random.default_rng(seed)
    x = random.standard_t(8, (rows, width)) @ random.normal(size=(width, width))
    return (x * np.linspace(0.1, 5, width) + np.where(np.arange(width) % 7 == 3, 400, 1)).astype(np.float32)


@pytest.mark.parametrize(
    "sizes", [[], [1], [1, 1, 1, 40], [0, 650, 0], [100] * 6, [7] * 99], ids=lambda s: f"{len(s)} cuts"
)
def test_streamed_figures_are_the_direct_ones(sizes):
    x = cloud()
    found, expected = vars(figures_of(x, sizes)), vars(by_formula(x))
    assert abs(expected["kurtosis"]) > 0.01 and expected["top1_share"] < expected["top10_share"] < 0.999
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


def test_chunks_that_differ_from_one_another():
    """Batches of their own mean, size and skew: what combining them must get right."""
    random = np.random.default_rng(1)
    x = np.concatenate([random.exponential(scale, (rows, 12)) + scale for scale, rows in ((1, 50), (30, 9), (5, 200))])
    found, expected = vars(figures_of(x, [50, 9])), vars(by_formula(x))
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_large_mean_costs_no_digits():
    """Sums of raw fourth powers would be all rounding here: 1e7^4 against a deviation of 1."""
    x = np.random.default_rng(2).laplace(size=(4000, 6))
    moved = figures_of(x + 1e7, [333] * 11)
    assert moved.kurtosis == pytest.approx(figures_of(x).kurtosis, rel=1e-5)
    assert moved.effective_rank == pytest.approx(figures_of(x).effective_rank, rel=1e-6)


def test_an_isotropic_cloud_has_full_effective_rank():
    found = figures_of(np.random.default_rng(0).standard_normal((50_000, 32)), [5000] * 9)
    assert 31.9 < found.effective_rank <= 32
    assert found.top1_share == pytest.approx(1 / 32, rel=0.1) and found.top10_share == pytest.approx(10 / 32, rel=0.1)
    assert found.kurtosis == pytest.approx(0, abs=0.05)


def test_a_line_has_effective_rank_one():
    random = np.random.default_rng(0)
    line = np.outer(random.standard_normal(500), random.standard_normal(16)) + 3
    found = figures_of(line, [100] * 4)
    assert found.effective_rank == pytest.approx(1, abs=1e-6) and found.top1_share == pytest.approx(1)
    two = np.zeros((4, 5))
    two[[0, 1], 0], two[[2, 3], 3] = (1, -1), (1, -1)
    assert figures_of(two).effective_rank == pytest.approx(2), "two directions of equal variance"


def test_what_does_not_vary():
    still = figures_of(np.full((20, 4), 2.5), [7])
    assert (still.effective_rank, still.top1_share, still.kurtosis) == (0, 0, 0) and still.norm_mean == 5
    half = cloud(100, 6).astype(np.float64)
    half[:, 2] = 7.1
    assert figures_of(half, [30]).kurtosis == pytest.approx(np.mean(stats.kurtosis(half[:, [0, 1, 3, 4, 5]])))
    with pytest.raises(LensaeError, match="no activations"):
        Moments(3).result()


def made_up(process: list[float], risks: dict[int, float] | None = None) -> tuple[Block, ...]:
    base = Figures(100, 1.0, 20.0, 0.5, 3.0, 0.1, 0.4, 0.0, 0.01, 0.0)
    figures = [
        replace(base, effective_rank=rank, float16_risk=(risks or {}).get(n, 0.01)) for n, rank in enumerate(process)
    ]
    return tuple(Block(n, f"blocks.{n}.hook_resid_post", f) for n, f in enumerate(figures))


def test_the_middle_third():
    thirds = {n: list(middle_third(n)) for n in (1, 2, 3, 4, 8, 12)}
    assert thirds == {1: [0], 2: [0, 1], 3: [1], 4: [1, 2], 8: [2, 3, 4, 5], 12: [4, 5, 6, 7]}
    assert (middle_third(30)[0], middle_third(30)[-1]) == (10, 19)


def test_the_highest_effective_rank_of_the_middle_is_chosen():
    choice = choose(made_up([99, 98, 97, 5, 7, 9, 90, 91, 92]), 64)
    assert (choice.block, choice.hook, choice.dtype) == (5, "blocks.5.hook_resid_post", "float16")
    assert "blocks 3 to 5" in choice.why and "9.0 of 64" in choice.why and "float32" not in choice.why


def test_a_block_that_float16_hardly_holds_is_passed_over():
    process = [99, 98, 97, 5, 7, 9, 90, 91, 92]
    choice = choose(made_up(process, {5: 0.5}), 64)
    assert choice.block == 4 and choice.dtype == "float16" and "of the 2 whose largest value" in choice.why
    assert choose(made_up(process, {5: 0.499}), 64).block == 5
    assert choose(made_up(process, {0: 3.0, 8: 3.0}), 64).block == 5, "blocks outside the middle third do not matter"


def test_when_float16_holds_none_of_them_float32_is_the_advice():
    choice = choose(made_up([99, 98, 97, 5, 7, 9, 90, 91, 92], {3: 0.5, 4: 1.5, 5: 20.0}), 64)
    assert choice.block == 5 and choice.dtype == "float32"
    assert "every block there" in choice.why and "--dtype float32" in choice.why


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
        expected = vars(by_formula(stream_by_hand(model_dir(family), block, 300)))
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
