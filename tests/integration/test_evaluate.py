"""Evaluation: figures against one-shot formulas, intervals against known cases, baselines against numpy, the CLI."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import documents, like_one_shot, write_set

from lensae.sae import functional
from lensae.sae.base import SAE
from lensae.sae.formats import saelens as checkpoint
from lensae.sae.metrics import reconstruction as metrics
from lensae.sae.metrics.baselines import Covariance, random_sae
from lensae.sae.metrics.bootstrap import interval
from lensae.stages.evaluate import losses, reconstruction
from lensae.stages.shared.progress import Silent
from lensae.store.pairs import Rows
from lensae.store.reader import SetReader

HOOK = "blocks.4.hook_resid_post"


def rows_of(n: int = 400, d: int = 12, seed: int = 0) -> torch.Tensor:
    """Rows with a mean far from zero and one direction of large variance."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=random) * torch.linspace(0.3, 3, d)
    return x + 20 * torch.eye(d)[0] + 6 * torch.randn(n, 1, generator=random) * torch.ones(d) / d**0.5


def sae_of(kind: str, d: int = 12, f: int = 40, seed: int = 3) -> SAE:
    """An SAE of one kind with random weights."""
    torch.manual_seed(seed)
    w = functional.unit_rows(torch.randn(f, d))
    tensors = {"W_enc": w.T.contiguous(), "b_enc": torch.full((f,), -1.0), "W_dec": w, "b_dec": rows_of(d=d).mean(0)}
    if kind == "jumprelu":
        tensors["threshold"] = torch.full((f,), 2.0)
    if kind == "gated":
        bias = tensors.pop("b_enc")
        tensors |= {"b_gate": bias, "b_mag": 0.5 * bias, "r_mag": torch.linspace(-0.2, 0.2, f)}
    return SAE(checkpoint.config(kind, d, f, {}, **({"k": 5} if kind == "topk" else {})), tensors)


@pytest.mark.parametrize("massive", [0, 3])
def test_streamed_figures_are_the_one_shot_formulas(massive):
    x = rows_of()
    x[torch.arange(massive) * 131 + 5] *= 40.0
    x_hat = 0.8 * x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    features = torch.relu(torch.randn(400, 9, generator=torch.Generator().manual_seed(2)) - 0.5)
    features[:, 4] = 0
    limit = metrics.massive_norm(x)
    typical = x.norm(dim=1) <= limit
    means = metrics.RowMeans(mean_D=x.double().mean(0), typical_mean_D=x[typical].double().mean(0), massive_norm=limit)
    total, sums = metrics.Accumulator(12, 9, limit), np.zeros(7)
    for part in torch.arange(400).split(77):
        fires = features[part] > 0
        total.add(x[part], x_hat[part], fires.sum(0))
        sums += metrics.row_figures(x[part], x_hat[part], fires.sum(1), means).sum(0).numpy()
    figures = {name: value for name, value in vars(total.result()).items() if name != "density"}
    figures["explained_variance_per_token"] = float(metrics.explained_variance_per_token(sums))
    like_one_shot(figures, x, x_hat, features > 0)
    assert figures["massive_rows"] == massive and figures["dead_share"] == pytest.approx(1 / 9)
    for statistic in (metrics.explained_variance, metrics.explained_variance_typical):
        assert float(statistic(sums)) == pytest.approx(figures[statistic.__name__], rel=1e-9)
    assert float(metrics.mean_active(sums)) == pytest.approx(figures["l0"])
    same = figures["explained_variance"] == pytest.approx(figures["explained_variance_typical"], rel=1e-3)
    assert same != bool(massive), "massive rows decide"


def test_which_rows_are_massive_hardly_depends_on_how_many_there_are():
    x = rows_of()
    plain = metrics.massive_norm(x)
    assert plain == pytest.approx(4 * float(x.norm(dim=1).mean()), rel=1e-4)
    x[:8] *= 1000.0
    assert metrics.massive_norm(x) == pytest.approx(plain, rel=0.1)


def test_the_relative_bias_is_the_best_factor():
    """Dividing the reconstruction by it leaves less error than any factor beside it."""
    x, x_hat = rows_of(), 1.7 * rows_of() + torch.randn(400, 12, generator=torch.Generator().manual_seed(5))
    total = metrics.Accumulator(12, 1, math.inf)
    total.add(x, x_hat, torch.zeros(1, dtype=torch.int64))
    gamma = total.result().relative_bias

    def error(factor: float) -> float:
        return float((x.double() - x_hat.double() / factor).square().sum())

    assert 1.5 < gamma < 1.9
    assert error(gamma) < min(error(gamma * 1.001), error(gamma / 1.001))


def test_the_variance_survives_a_large_mean():
    x = rows_of() + 3000
    x_hat = x + 0.1
    total = metrics.Accumulator(12, 1, math.inf)
    for part in x.split(50):
        total.add(part, part + 0.1, torch.zeros(1, dtype=torch.int64))
    a, b = x.double().numpy(), x_hat.double().numpy()
    expected = 1 - ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()
    assert total.result().explained_variance == pytest.approx(expected, rel=1e-6)


def test_an_interval_of_like_groups_has_no_width():
    low, high = interval(np.tile([10.0, 4.0], (25, 1)), lambda sums: sums[..., 1] / sums[..., 0])
    assert low == high == pytest.approx(0.4)
    assert interval(np.ones((1, 2)), lambda sums: sums[..., 1] / sums[..., 0]) is None


def test_an_interval_is_the_normal_one_where_that_holds():
    values = np.random.default_rng(0).normal(5, 2, 900)
    sums = np.stack([np.ones(900), values], axis=1)
    low, high = interval(sums, lambda s: s[..., 1] / s[..., 0], resamples=4000)
    half = 1.96 * values.std() / 30
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """A ratio over groups of unlike size, 300 times over."""
    random, inside = np.random.default_rng(1), 0
    for trial in range(300):
        size = random.integers(5, 60, 40).astype(float)
        sums = np.stack([size, random.normal(3 * size, 2 * np.sqrt(size) + 0.5 * size)], axis=1)
        low, high = interval(sums, lambda s: s[..., 1] / s[..., 0], seed=trial, resamples=400)
        inside += low <= 3 <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_an_interval_depends_on_its_seed_alone(monkeypatch):
    sums = np.random.default_rng(2).random((30, 3)) + 1
    found = interval(sums, lambda s: s[..., 1] / s[..., 0], seed=4)
    assert interval(sums, lambda s: s[..., 1] / s[..., 0], seed=4) == found
    assert interval(sums, lambda s: s[..., 1] / s[..., 0], seed=5) != found
    monkeypatch.setattr("lensae.sae.metrics.bootstrap.DRAWS_AT_ONCE", 70)
    assert interval(sums, lambda s: s[..., 1] / s[..., 0], seed=4) == pytest.approx(found)


@pytest.mark.parametrize("components", [0, 1, 5, 12, 99])
def test_pca_is_the_singular_value_decomposition(components):
    x = rows_of()
    covariance = Covariance(12)
    for part in x.split(37):
        covariance.add(part)
    pca = covariance.pca(components)
    a = x.double().numpy()
    _u, _s, v = np.linalg.svd(a - a.mean(0), full_matrices=False)
    v = v[:components]
    expected = (a - a.mean(0)) @ v.T @ v + a.mean(0)
    assert pca.basis_KD.shape == (min(components, 12), 12)
    np.testing.assert_allclose(pca(x).numpy(), expected, atol=2e-5)
    np.testing.assert_allclose(covariance.products_DD / 400, np.cov(a.T, bias=True), rtol=1e-9)


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard", "gated"])
def test_a_random_sae_has_the_width_the_kind_and_the_l0(kind):
    x, sae = rows_of(2000), sae_of(kind)
    wanted = float((sae.encode(x) > 0).sum(1).double().mean())
    drawn = random_sae(sae, wanted, x, seed=7)
    features = drawn.encode(x)
    assert drawn.cfg["architecture"] == (kind if kind != "gated" else "jumprelu")
    assert (drawn.d_in, drawn.d_sae) == (12, 40)
    assert float((features > 0).sum(1).double().mean()) == pytest.approx(wanted, rel=0.01)
    torch.testing.assert_close(drawn.W_dec.norm(dim=1), torch.ones(40))
    factor = drawn.tensors["W_enc"].norm(dim=0)
    torch.testing.assert_close(drawn.tensors["W_enc"], (drawn.W_dec * factor[:, None]).T)
    assert float(factor.max() - factor.min()) < 1e-5
    assert not torch.allclose(drawn.W_dec, random_sae(sae, wanted, x, seed=8).W_dec)
    torch.testing.assert_close(drawn.W_dec, random_sae(sae, wanted, x, seed=7).W_dec)
    # The factor: no other has less error on these rows.
    centred, hat = x - drawn.tensors["b_dec"], drawn.decode(features) - drawn.tensors["b_dec"]
    errors = [float((centred - hat * times).square().sum()) for times in (0.99, 1.0, 1.01)]
    assert errors[1] == min(errors)


@pytest.mark.parametrize("block", [1, 7, 16, 50, 99])
def test_nearest_cosine_is_that_of_the_whole_matrix(block):
    w = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 50)[:, None]
    w[30] = -2 * w[3]
    w[44] = 5 * w[12]
    unit = (w / w.norm(dim=1, keepdim=True)).numpy()
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -1)
    found = metrics.nearest_cosine(w, block)
    np.testing.assert_allclose(found.numpy(), cosine.max(1), atol=1e-6)
    assert found[44] == found[12] == pytest.approx(1, abs=1e-6)


def test_held_out_rows_are_summed_by_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruction, "BATCH_ROWS", 13)
    found = documents(30)
    write_set(tmp_path / "toy" / HOOK, found)
    from lensae.core.paths import read_set

    reader = SetReader(read_set(tmp_path / "toy" / HOOK))
    held = reconstruction.hold_out(Rows(reader, reader.everything()))
    stored = [one for one in found if len(one.token_id)]
    assert held.groups == len({one.prompt for one in stored})
    hook = next(iter(found[0].activations))
    rows = [one.activations[hook].astype(np.float16).astype(np.float64) for one in stored]
    np.testing.assert_allclose(held.means.mean_D, np.concatenate(rows).mean(0), atol=1e-12)
    half = reconstruction.System("half", "half", 16, lambda x: (0.5 * x, None))
    scored = reconstruction.score(held, half, "cpu", Silent())
    prompts = list(dict.fromkeys(one.prompt for one in stored))
    for group, prompt in enumerate(prompts):
        own = np.concatenate([a for a, one in zip(rows, stored, strict=True) if one.prompt == prompt])
        assert scored.sums_GS[group, metrics.ROWS] == len(own)
        assert scored.sums_GS[group, metrics.ERROR] == pytest.approx(0.25 * (own**2).sum())
        assert scored.sums_GS[group, metrics.SPREAD] == pytest.approx(((own - held.means.mean_D.numpy()) ** 2).sum())
    small = [len(x) for x, _y, _group in held.batches(9)]
    assert max(small) <= 9 and sum(small) == len(held.group_R)


@pytest.fixture
def copied(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the trained store, as the current one."""
    place = tmp_path / "copy"
    shutil.copytree(trained, place)
    monkeypatch.setenv("LENSAE_STORE", str(place))
    return place


def test_every_figure_of_the_command(lensae, copied):
    status, out, err = lensae("evaluate", "--json")
    assert status == 0, err
    found = json.loads(out)
    entry, sae_entry = _current()
    assert json.loads((sae_entry.path / "evaluation.json").read_text()) == {
        key: value for key, value in found.items() if key != "figures"
    }
    reader, sae = SetReader(entry), checkpoint.load(sae_entry.path)
    split = reader.split_at(sae_entry.training.heldout_limit, 0)
    x = torch.from_numpy(np.concatenate(list(reader.document_rows(split.heldout))))
    features = sae.encode(x)
    like_one_shot(found["reconstruction"], x, sae.decode(features), features > 0)
    _like_numpys_pca(found, np.concatenate(list(reader.document_rows(split.training))), x)
    assert found["heldout_prompts"] < found["heldout_documents"] == split.heldout.documents
    assert found["heldout"] == "held out of its training" and found["splice_check"]["largest_difference"] == 0
    raw, drawn = found["baselines"]["raw"], found["baselines"]["random"]
    assert raw["reconstruction"]["explained_variance"] == 1 and raw["loss"]["ce"] == found["loss"]["ce_clean"]
    assert raw["loss"]["kl"] == 0 and raw["loss"]["ce_recovered"] == 1
    assert drawn["reconstruction"]["l0"] == pytest.approx(found["reconstruction"]["l0"], rel=0.05)
    for one, own in ((found["reconstruction"], found), (drawn["reconstruction"], drawn)):
        for name in ("explained_variance", "explained_variance_typical", "l0", "ce_recovered", "kl_recovered"):
            low, high = own["intervals"][name]
            assert low <= {**one, **own["loss"]}[name] <= high, name
    histograms = found["histograms"]
    assert sum(histograms["activations"]["counts"]) == int((features > 0).sum())
    assert histograms["activations"]["zeros"] == int((features == 0).sum())
    alive = round((1 - found["reconstruction"]["dead_share"]) * sae.d_sae)
    assert sum(histograms["density"]["counts"]) == alive
    for name in ("sae", "random"):
        histogram = histograms[f"nearest_cosine_{name}"]
        assert sum(histogram["counts"]) == sae.d_sae and len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert [Path(path).name for path in found["figures"]] == ["density.png", "activations.png", "decoder_cosine.png"]
    again = json.loads(lensae("evaluate", "--json")[1])
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


def _current():
    from lensae.core.paths import find_pair

    return find_pair(None, None)


def _like_numpys_pca(found: dict, training: np.ndarray, x: torch.Tensor) -> None:
    t, a = training.astype(np.float64), x.double().numpy()
    k = round(found["reconstruction"]["l0"])
    _u, _s, v = np.linalg.svd(t - t.mean(0), full_matrices=False)
    hat = (a - t.mean(0)) @ v[:k].T @ v[:k] + t.mean(0)
    own = found["baselines"]["pca"]["reconstruction"]
    expected = 1 - ((a - hat) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()
    assert own["explained_variance"] == pytest.approx(expected, rel=1e-4) and own["l0"] == k
    assert own["dead_share"] is own["dense_share"] is None
    assert found["baseline_training_rows"] == len(t)


def test_a_sweep_recovers_what_each_evaluation_finds(copied, monkeypatch):
    from lensae.core.recipe import TrainRecipe
    from lensae.stages.evaluate import run as evaluate
    from lensae.stages.train import sweep

    monkeypatch.setattr(sweep, "CE_TOKENS", 10**9)
    monkeypatch.setattr(evaluate, "CE_TOKENS", 10**9)
    recipes = [TrainRecipe(width=4, k=k, epochs=2, batch=512) for k in (4, 16)]
    report = sweep.sweep(recipes)
    assert len(report.points) == 2 and not report.no_losses
    for point in report.points:
        alone = evaluate.evaluate(sae_name=point.name)
        assert point.ce_recovered == pytest.approx(alone.loss.ce_recovered, rel=1e-4)
        assert point.mse == pytest.approx(alone.figures["mse"], rel=1e-4)


def test_losses_are_those_of_one_sequence_at_a_time(use_trained):
    from lensae.model.score import next_token_logprobs
    from lensae.stages.shared.models import load_model_of
    from lensae.steering.edits import Replacement

    entry, _sae = _current()
    reader = SetReader(entry)
    model = load_model_of(entry, [HOOK])
    chosen = reader.split(0.1, 0).heldout.spread(5)

    def shrink(x):
        return 0.7 * x

    end = min(model.end_ids)
    texts = [replace(one, input_ids=np.insert(one.input_ids, [5, 9], end)) for one in reader.documents(chosen)]
    with_ends = SimpleNamespace(entry=entry, documents=lambda _chosen: iter(texts))
    found = losses.measure(model, with_ends, chosen, {"shrunk": shrink}, Silent())
    clean, ce, kl = [], [], []
    for ids in (one.input_ids.tolist() for one in texts):
        p = next_token_logprobs(model, [ids])[0].double()
        q = next_token_logprobs(model, [ids], [Replacement(HOOK, shrink)])[0].double()
        for t, target in enumerate(ids[1:]):
            if target not in model.text.special_ids:
                clean.append(-float(p[t, target]))
                ce.append(-float(q[t, target]))
                kl.append(float((p[t].exp() * (p[t] - q[t])).sum()))
    sums = found.of("shrunk").sum(0)
    assert sums[losses.TOKENS] == len(clean) <= sum(len(one.input_ids) - 3 for one in texts)
    assert sums[losses.CLEAN] == pytest.approx(sum(clean), rel=1e-4)
    assert sums[losses.CE] == pytest.approx(sum(ce), rel=1e-4)
    assert sums[losses.KL] == pytest.approx(sum(kl), rel=1e-3)
    assert found.of("clean").sum(0)[losses.KL] == 0 == found.splice_difference


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard", "gated"])
def test_an_sae_that_was_not_trained_here(kind, lensae, copied, tmp_path):
    sae = sae_of(kind, d=64, f=96)
    sae.tensors["b_dec"].zero_()
    checkpoint.save(tmp_path / "foreign", sae)
    status, out, err = lensae("evaluate", "--sae", tmp_path / "foreign", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert "not trained here" in found["heldout"] and "seed 0" in found["heldout"]
    entry, _sae = _current()
    assert found["heldout_documents"] == SetReader(entry).split(0.1, 0).heldout.documents
    assert found["baselines"]["random"]["reconstruction"]["l0"] == pytest.approx(found["reconstruction"]["l0"], rel=0.2)
    assert (tmp_path / "foreign/evaluation.json").is_file() and (tmp_path / "foreign/figures/density.png").is_file()


def test_a_folder_that_cannot_be_written_to(lensae, copied, tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "foreign", sae_of("topk", d=64, f=96))
    monkeypatch.setattr("lensae.stages.evaluate.run.os.access", lambda path, mode: False)
    status, out, err = lensae("evaluate", "--sae", tmp_path / "foreign")
    assert status == 0, err
    assert "nothing was written" in out and "not trained here" in out
    assert sorted(path.name for path in (tmp_path / "foreign").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_the_table(lensae, copied):
    status, out, err = lensae("evaluate")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["SAE", "PCA", "random", "SAE", "raw", "stream"]
    found = json.loads((_current()[1].path / "evaluation.json").read_text())
    row = next(line for line in lines if line.startswith("explained variance")).split()[2:]
    columns = [found, *(found["baselines"][name] for name in ("pca", "random", "raw"))]
    assert row == [f"{column['reconstruction']['explained_variance']:.4f}" for column in columns]
    row = next(line for line in lines if line.startswith("CE loss recovered")).split()[3:]
    assert row == [f"{column['loss']['ce_recovered']:.4f}" for column in columns]
    low, high = found["intervals"]["ce_recovered"]
    assert f"{low:.3f} to {high:.3f}" in out and "held-out prompts" in out and "changed nothing" in out


def test_the_table_leads_without_massive_rows(lensae, copied, monkeypatch):
    monkeypatch.setattr("lensae.sae.metrics.reconstruction.MASSIVE", 1.3)
    status, out, err = lensae("evaluate")
    assert status == 0, err
    found = json.loads((_current()[1].path / "evaluation.json").read_text())
    figures, massive = found["reconstruction"], found["massive_rows"]
    assert 0 < massive["count"] == figures["massive_rows"] < figures["rows"] / 2
    lines = [line.split() for line in out.splitlines()]
    [first] = [number for number, words in enumerate(lines) if words[:2] == ["explained", "variance"] and number < 9]
    with_massive = next(words for words in lines[first:] if words[:3] == ["massive", "rows", "included"])
    assert lines[first][2] == f"{figures['explained_variance_typical']:.4f}"
    assert with_massive[3] == f"{figures['explained_variance']:.4f}" != lines[first][2]
    assert f"leave out {massive['count']} massive rows, of a norm above {massive['norm_above']:,.1f}" in " ".join(
        out.split()
    )
    low, high = found["intervals"]["explained_variance_typical"]
    assert low < figures["explained_variance_typical"] < high


def test_without_massive_rows_there_is_one_line(lensae, copied):
    status, out, err = lensae("evaluate")
    assert status == 0 and "massive rows" not in out, err
    found = json.loads((_current()[1].path / "evaluation.json").read_text())["reconstruction"]
    assert found["massive_rows"] == 0
    assert found["explained_variance"] == pytest.approx(found["explained_variance_typical"], rel=1e-12)
