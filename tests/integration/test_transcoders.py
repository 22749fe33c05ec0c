"""Evaluating transcoders: every figure against numpy, losses against hooks put on the model by hand, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import like_one_shot

from lensae.core.paths import find_sae, find_set, read_set
from lensae.core.recipe import TrainRecipe
from lensae.sae import functional
from lensae.sae.base import SAE
from lensae.sae.formats import saelens as checkpoint
from lensae.sae.metrics.baselines import Covariance, random_transcoder
from lensae.sae.metrics.linear_maps import JointMoments
from lensae.stages.shared.models import load_model_of
from lensae.store.reader import SetReader

READ, PREDICTED = "blocks.4.hook_resid_mid", "blocks.4.hook_mlp_out"


pytestmark = pytest.mark.usefixtures("one_thread")


def pairs(n: int = 500, d: int = 12, o: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows far from zero, and rows that follow from them but for some noise."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=random) * torch.linspace(0.3, 3, d) + 20 * torch.eye(d)[0]
    turn = torch.randn(d, o, generator=random) * torch.linspace(2, 0.1, o)
    return x, x @ turn + 0.4 * torch.randn(n, o, generator=random) - 5


def moments(x: torch.Tensor, y: torch.Tensor) -> JointMoments:
    found = JointMoments(x.shape[1], y.shape[1])
    for part in zip(x.split(37), y.split(37), strict=True):
        found.add(*part)
    return found


def regressed(x: np.ndarray, y: np.ndarray, rank: int | None, at: np.ndarray) -> np.ndarray:
    """Least squares by numpy, its predictions projected on their first principal directions."""
    x, y, at = x.astype(np.float64), y.astype(np.float64), at.astype(np.float64)
    weights = np.linalg.lstsq(x - x.mean(0), y - y.mean(0))[0]
    v = np.linalg.svd((x - x.mean(0)) @ weights, full_matrices=False)[2][:rank]
    return (at - x.mean(0)) @ weights @ v.T @ v + y.mean(0)


@pytest.mark.parametrize("rank", [0, 1, 3, 7, 99, None])
def test_linear_maps_are_numpys(rank):
    x, y = pairs()
    found = moments(x, y).linear_map(rank)
    assert found.out_KO.shape == (7 if rank is None else min(rank, 7), 7)
    expected = regressed(x.numpy(), y.numpy(), rank, x.numpy())
    np.testing.assert_allclose(found(x).numpy(), expected, atol=2e-4)


def test_no_map_of_the_rank_has_less_error():
    """Neither ordinary regression on the first components of the input, nor on those of the target."""
    x, y = pairs()
    own = float((moments(x, y).linear_map(2)(x) - y).square().sum())
    covariance = Covariance(12)
    covariance.add(x)
    coarse = covariance.pca(2)(x)
    assert own < float((moments(coarse, y).linear_map()(coarse) - y).square().sum())
    covariance = Covariance(7)
    covariance.add(y)
    coarse = covariance.pca(2)(y)
    assert own <= float((moments(x, coarse).linear_map()(x) - y).square().sum()) * (1 + 1e-6)


def test_predicting_rows_from_themselves_is_pca():
    x, _y = pairs()
    covariance = Covariance(12)
    covariance.add(x)
    torch.testing.assert_close(moments(x, x).linear_map(4)(x), covariance.pca(4)(x), atol=1e-3, rtol=1e-4)


def test_inputs_that_do_not_vary_in_every_direction():
    x, y = pairs()
    flat = torch.cat([x, x[:, :3], torch.ones(len(x), 2)], dim=1)
    torch.testing.assert_close(moments(flat, y).linear_map()(flat), moments(x, y).linear_map()(x), atol=2e-3, rtol=1e-4)


def transcoder_of(kind: str, d: int = 12, o: int = 7, f: int = 40, hook: str | None = None) -> SAE:
    """A transcoder of one kind with random weights."""
    torch.manual_seed(3)
    w = functional.unit_rows(torch.randn(f, d))
    tensors = {"W_enc": w.T.contiguous(), "W_dec": torch.randn(f, o), "b_dec": torch.zeros(o)}
    tensors["b_enc"] = -torch.ones(f) - pairs()[0].mean(0) @ tensors["W_enc"] if d == 12 else torch.zeros(f)
    if kind == "jumprelu_transcoder":
        tensors["threshold"] = torch.full((f,), 2.0)
    k = {"k": 5} if kind == "topk" else {}
    metadata = {"hook_name_out": hook} if hook else {}
    cfg = checkpoint.config(kind, d, f, metadata, **k, d_out=o, apply_b_dec_to_input=False)
    return SAE(cfg, tensors)


@pytest.mark.parametrize("kind", ["topk", "jumprelu_transcoder", "transcoder"])
def test_a_random_transcoder_has_the_width_the_kind_and_the_l0(kind):
    x, y = pairs(2000)
    own = transcoder_of(kind)
    wanted = float((own.encode(x) > 0).sum(1).double().mean())
    drawn = random_transcoder(own, wanted, x, y, seed=7)
    features = drawn.encode(x)
    assert (drawn.cfg["architecture"], drawn.d_in, drawn.d_out, drawn.d_sae) == (kind, 12, 7, 40)
    assert float((features > 0).sum(1).double().mean()) == pytest.approx(wanted, rel=0.02)
    torch.testing.assert_close(drawn.tensors["W_enc"].norm(dim=0), torch.ones(40))
    assert not torch.allclose(drawn.W_dec, random_transcoder(own, wanted, x, y, seed=8).W_dec)
    centred, hat = y - drawn.tensors["b_dec"], features @ drawn.W_dec
    alone = features.T @ centred / features.square().sum(0)[:, None]
    ratio = drawn.W_dec / alone
    torch.testing.assert_close(ratio, ratio.mean() * torch.ones_like(ratio), rtol=1e-3, atol=1e-3)
    errors = [float((centred - hat * times).square().sum()) for times in (0.99, 1.0, 1.01)]
    assert errors[1] == min(errors) < float(centred.square().sum())


@pytest.fixture(scope="module")
def paired(tmp_path_factory, model_dir) -> Path:
    """A store with the input and the output of an MLP, and a transcoder from one to the other."""
    from lensae.stages.collect import run as collect
    from lensae.stages.train import run as train

    place = tmp_path_factory.mktemp("paired") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSAE_STORE", str(place))
        options = collect.CollectOptions(model=str(model_dir("llama")), hooks=(READ, PREDICTED), generate=False)
        collect.collect(options, "python main.py collect")
        recipe = TrainRecipe(width=8, k=8, epochs=8, batch=128, lr=5e-3, target=f"tiny-llama/{PREDICTED}")
        train.train(recipe, f"tiny-llama/{READ}", "mlp")
    return place


@pytest.fixture
def copied(paired, tmp_path, monkeypatch) -> Path:
    """A copy of that store, as the current one."""
    shutil.copytree(paired, tmp_path / "copy")
    monkeypatch.setenv("LENSAE_STORE", str(tmp_path / "copy"))
    return tmp_path / "copy"


def rows(reader: SetReader, side) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(list(reader.document_rows(side))))


def explained(y: torch.Tensor, y_hat) -> float:
    a, b = y.double().numpy(), np.asarray(y_hat, np.float64)
    return 1 - ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()


def test_every_figure_of_a_transcoder(lensae, copied):
    status, out, err = lensae("evaluate", "--json")
    assert status == 0, err
    found = json.loads(out)
    entry = find_set(f"tiny-llama/{READ}")
    sae_entry, source, target = find_sae(entry), SetReader(entry), SetReader(find_set(f"tiny-llama/{PREDICTED}"))
    assert (found["set"], found["target"], found["sae"]) == (entry.name, target.entry.name, "mlp")
    sae, limit = checkpoint.load(sae_entry.path), sae_entry.training.heldout_limit
    x, y = (rows(reader, reader.split_at(limit, 0).heldout) for reader in (source, target))
    features = sae.encode(x)
    like_one_shot(found["reconstruction"], y, sae.decode(features), features > 0)
    assert found["heldout"] == "held out of its training" and found["splice_check"]["largest_difference"] == 0
    assert sum(found["histograms"]["activations"]["counts"]) == int((features > 0).sum())
    trained_x, trained_y = (rows(reader, reader.split_at(limit, 0).training).numpy() for reader in (source, target))
    assert found["baseline_training_rows"] == len(trained_x)
    baselines = found["baselines"]
    assert list(baselines) == ["linear_rank_l0", "linear", "random", "raw"]
    for name, rank in (("linear_rank_l0", round(found["reconstruction"]["l0"])), ("linear", 64)):
        own = baselines[name]["reconstruction"]
        expected = explained(y, regressed(trained_x, trained_y, rank, x.numpy()))
        assert own["explained_variance"] == pytest.approx(expected, abs=2e-3) and own["l0"] == rank
        assert own["dead_share"] is None
    drawn = baselines["random"]["reconstruction"]
    assert drawn["l0"] == pytest.approx(found["reconstruction"]["l0"], rel=0.05)
    assert drawn["explained_variance"] < found["reconstruction"]["explained_variance"]
    assert baselines["raw"]["reconstruction"]["explained_variance"] == 1
    assert baselines["raw"]["loss"] == {"ce": found["loss"]["ce_clean"], "ce_recovered": 1, "kl": 0, "kl_recovered": 1}


def by_hand(model, ids: list[int], put) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (T, V) in float64 with `put(read, predicted)` in place of what the MLP gives, at all tokens
    that are not special, by the model's own hooks; and which of the tokens are not special."""
    ordinary = torch.tensor([one not in model.text.special_ids for one in ids])
    kept = {}

    def replace(y_BTD, hook):
        changed = y_BTD.clone()
        changed[0, ordinary] = put(kept["x"], y_BTD)[0, ordinary]
        return changed

    model.add_hook(READ, lambda x_BTD, hook: kept.update(x=x_BTD.clone()))
    model.add_hook(PREDICTED, replace)
    with torch.inference_mode():
        found = model.forward(torch.tensor([ids]), torch.ones(1, len(ids)), last_only=False, use_cache=False)[0]
    model.reset_hooks()
    return found[0].double().log_softmax(-1), ordinary


def test_losses_of_a_transcoder_are_those_of_hooks_put_on_by_hand(lensae, copied, monkeypatch):
    monkeypatch.setattr("lensae.stages.evaluate.run.CE_TOKENS", 150)
    status, out, err = lensae("evaluate", "--json")
    assert status == 0, err
    loss = json.loads(out)["loss"]
    entry = find_set(f"tiny-llama/{READ}")
    reader, sae_entry = SetReader(entry), find_sae(entry)
    sae = checkpoint.load(sae_entry.path)
    held = reader.split_at(sae_entry.training.heldout_limit, 0).heldout
    model = load_model_of(entry, [READ, PREDICTED])
    assert model.order([PREDICTED, READ]) == [READ, PREDICTED]
    functions = {
        "clean": lambda _x, y: y,
        "sae": lambda x, _y: sae.decode(sae.encode(x)),
        "zero": lambda _x, y: torch.zeros_like(y),
    }
    sums, tokens = dict.fromkeys([*functions, "kl_sae", "kl_zero"], 0.0), 0
    for one in reader.documents(held.spread(round(held.documents * 150 / held.rows))):
        ids = one.input_ids.tolist()
        found = {}
        for name, put in functions.items():
            found[name], ordinary = by_hand(model, ids, put)
        counted, after = ordinary[1:], torch.tensor(ids[1:])
        tokens += int(counted.sum())
        for name, logp in found.items():
            sums[name] -= float(logp[:-1].gather(1, after[:, None])[counted].sum())
            if name != "clean":
                kl = (found["clean"].exp() * (found["clean"] - logp)).sum(-1)
                sums[f"kl_{name}"] += float(kl[:-1][counted].sum())
    assert loss["tokens"] == tokens > 50
    for name in functions:
        assert loss[f"ce_{name}"] == pytest.approx(sums[name] / tokens, rel=1e-4), name
    for name in ("kl_sae", "kl_zero"):
        assert loss[name] == pytest.approx(sums[name] / tokens, rel=2e-3, abs=1e-5), name
    recovered = (sums["zero"] - sums["sae"]) / (sums["zero"] - sums["clean"])
    assert loss["ce_recovered"] == pytest.approx(recovered, abs=2e-3)
    assert loss["kl_recovered"] == pytest.approx(1 - sums["kl_sae"] / sums["kl_zero"], abs=2e-3)
    assert abs(loss["ce_sae"] - loss["ce_clean"]) > 1e-3


def test_the_table_of_a_transcoder(lensae, copied):
    status, out, err = lensae("evaluate")
    assert status == 0, err
    assert out.splitlines()[0].split() == "transcoder linear, rank 8 linear random raw target".split()
    assert f"the rows of tiny-llama/{PREDICTED} predicted from those of tiny-llama/{READ}" in " ".join(out.split())
    assert "best linear map of a rank as high" in out and "changed nothing" in out
    folder = find_sae(find_set(f"tiny-llama/{READ}")).path
    assert (folder / "evaluation.json").is_file() and (folder / "figures/decoder_cosine.png").is_file()


def test_a_transcoder_that_was_not_trained_here(lensae, copied, tmp_path):
    """It predicts the set that is beside the one it reads, at the hook it names."""
    checkpoint.save(tmp_path / "foreign", transcoder_of("topk", 64, 64, 96, PREDICTED))
    status, out, err = lensae("evaluate", "--set", f"tiny-llama/{READ}", "--sae", tmp_path / "foreign", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["target"] == f"tiny-llama/{PREDICTED}" and "not trained here" in found["heldout"]


def test_what_cannot_be_evaluated(lensae, copied, tmp_path):
    def refused(sae: SAE, hook: str = READ) -> str:
        checkpoint.save(tmp_path / "foreign", sae)
        status, _out, err = lensae("evaluate", "--set", f"tiny-llama/{hook}", "--sae", tmp_path / "foreign")
        assert status == 2
        return err

    assert "does not say what it predicts" in refused(transcoder_of("topk", 64, 64, 96))
    assert "no activation set named" in refused(transcoder_of("topk", 64, 64, 96, "blocks.5.hook_mlp_out"))
    assert "predicts 7 dimensions" in refused(transcoder_of("topk", 64, 7, 96, PREDICTED))
    backwards = refused(transcoder_of("topk", 64, 64, 96, READ), PREDICTED)
    assert f"reads {PREDICTED}, which the model computes after {READ}" in backwards
    assert f"--set tiny-llama/{READ} --target tiny-llama/{PREDICTED}" in backwards
    manifest = copied / "tiny-llama" / PREDICTED / "manifest.json"
    fewer = json.loads(manifest.read_text())
    fewer["shards"][-1]["rows"] -= 1
    manifest.write_text(json.dumps(fewer))
    assert read_set(manifest.parent).rows < find_set(f"tiny-llama/{READ}").rows
    assert "do not hold the same tokens" in refused(transcoder_of("topk", 64, 64, 96, PREDICTED))


def test_a_transcoder_is_not_for_steering(lensae, copied):
    status, _out, err = lensae("index")
    assert status == 0, err
    listed = json.loads(lensae("features", "list", "--k", 1, "--json")[1])
    status, _out, err = lensae("steer", "--feature", listed[0]["feature"])
    assert status == 2 and "'mlp' is a transcoder" in err
