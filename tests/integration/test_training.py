"""What a training leaves on disk, from one set or a pair, and what it chooses by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import HOOK, write_set
from training_helpers import SMALL, TARGET_HOOK, WIDTH, Stops, digest, interrupted, made, metrics, write_target

from lensae.core import registry
from lensae.core.paths import find_sae, find_set, read_set
from lensae.core.recipe import TrainRecipe
from lensae.sae.architectures import _losses as losses
from lensae.sae.train import schedule as plans
from lensae.sae.train.run import TrainingRun
from lensae.stages.train.data import open_data
from lensae.stages.train.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


# Transcoders.


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "relu"])
def test_a_transcoder_on_two_sets(arch, toy, store):
    """Rows of one set predict those of another, which is cut elsewhere; interrupted, it goes on as all do."""
    write_target(store / "toy" / TARGET_HOOK, made(), 10)
    recipe = replace(SMALL, arch=arch, target=f"toy/{TARGET_HOOK}", epochs=8, lr=5e-3)
    report = train(recipe, f"toy/{HOOK}")
    cfg = json.loads((report.sae.path / "cfg.json").read_text())
    assert (cfg["d_in"], cfg["d_out"], cfg["metadata"]["hook_name_out"]) == (WIDTH, 10, TARGET_HOOK)
    assert report.sae.name.startswith("transcoder-") and report.fit.heldout.explained_variance > 0.3
    assert report.sae.training.target.name == f"toy/{TARGET_HOOK}"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, f"toy/{HOOK}", "parts", Stops(50))
    assert digest(train(recipe, f"toy/{HOOK}", "parts").sae.path) == digest(report.sae.path)


def test_what_a_transcoder_predicts_is_the_target(toy, store):
    """The saved SAE, on the stored rows of one set, gives those of the other."""
    from lensae.sae.formats.saelens import load
    from lensae.store.reader import SetReader

    write_target(store / "toy" / TARGET_HOOK, made(), 10)
    report = train(replace(SMALL, k=8, width=8, epochs=30, target=f"toy/{TARGET_HOOK}", lr=1e-2), f"toy/{HOOK}")
    sae = load(report.sae.path)
    (x,), (y,) = (
        list(reader.batches(reader.everything(), 10_000))
        for reader in (SetReader(read_set(store / "toy" / hook)) for hook in (HOOK, TARGET_HOOK))
    )
    predicted = sae.decode(sae.encode(torch.from_numpy(x))).numpy()
    assert 1 - ((predicted - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum() > 0.8


def test_pairs_that_do_not_fit(toy, store, lensae):
    write_target(store / "toy" / TARGET_HOOK, made(41), 10)
    command = ("train", "--set", f"toy/{HOOK}", "--target", f"toy/{TARGET_HOOK}")
    status, _out, err = lensae(*command)
    assert status == 2 and "do not hold the same tokens" in err
    write_target(store / "other" / TARGET_HOOK, made(), 10)
    status, _out, err = lensae(*command[:3], "--target", f"other/{TARGET_HOOK}", "--arch", "tied-l1")
    assert status == 2 and "tied-l1 cannot predict rows of width 10 from rows of width 16" in err
    status, _out, err = lensae(*command[:3], "--target", "nope")
    assert status == 2 and "no activation set named 'nope'" in err
    assert not list(toy.glob("saes/*"))


def test_shuffle_rows_changes_the_order_alone(toy, lensae):
    options = ("--width", 2, "--k", 4, "--batch", 64, "--epochs", 2, "--json")
    found = [json.loads(lensae("train", *options, "--shuffle-rows", n)[1]) for n in (64, 64, 100_000)]
    digests = [digest(Path(one["path"])) for one in found]
    assert digests[0] == digests[1] != digests[2]
    assert found[0]["recipe"]["shuffle_rows"] == 64
    status, _out, err = lensae("train", "--shuffle-rows", 0)
    assert status == 2 and "shuffle_rows cannot be 0" in err


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "relu"])
def test_an_encoder_in_bfloat16(arch, toy, lensae):
    """An SAE like any other, with what float32 would have selected on record, and gone on with to the same bytes."""
    options = ("--arch", arch, "--width", 2, "--k", 4, "--batch", 64, "--epochs", 3, "--encoder-dtype", "bfloat16")
    status, out, _err = lensae("train", *options)
    sae = find_sae(find_set(None), None)
    assert status == 0 and sae.name.endswith("-bfloat16") and "bfloat16 encoder: on held-out rows it selects" in out
    facts = json.loads((sae.path / "training.json").read_text())
    assert facts["recipe"]["encoder_dtype"] == "bfloat16" and 0.95 < facts["encoder_agreement"] <= 1
    assert json.loads((sae.path / "cfg.json").read_text())["dtype"] == "float32"
    recipe = replace(SMALL, arch=arch, epochs=3, encoder_dtype="bfloat16")
    interrupted(recipe, 20, "parts")
    assert digest(train(recipe, name="parts").sae.path) == digest(sae.path)
    plain = train(replace(recipe, encoder_dtype="float32"))
    assert plain.fit.agreement is None and "encoder_agreement" not in plain.sae.training.to_json()
    status, _out, err = lensae("train", "--encoder-dtype", "int8")
    assert status == 2 and "encoder_dtype cannot be 'int8'" in err


# What is drawn and written for other tools.


def test_the_figures_of_a_training(toy, lensae):
    status, out, err = lensae("train", "--width", 2, "--k", 4, "--epochs", 2, "--json")
    assert status == 0, err
    figures = [Path(figure) for figure in json.loads(out)["figures"]]
    assert [figure.name for figure in figures] == ["training.png", "density.png", "activations.png"]
    assert all(one.read_bytes().startswith(b"\x89PNG") and one.stat().st_size > 15_000 for one in figures)


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "relu", "gated"])
def test_the_histogram_is_of_what_the_saved_sae_gives(arch, toy, store):
    from lensae.sae.formats.saelens import load
    from lensae.sae.metrics.histogram import EDGES

    report = train(replace(SMALL, arch=arch), f"toy/{HOOK}")
    counts, zeros = report.fit.activation_histogram
    rows = np.concatenate(list(open_data(SMALL, None).heldout(64)()))
    features = load(report.sae.path).encode(torch.from_numpy(rows)).numpy()
    assert zeros + counts.sum() == features.size and zeros == pytest.approx((features == 0).sum(), abs=2)
    expected = np.histogram(features[features > 0], EDGES)[0]
    assert np.abs(counts - expected).sum() <= 0.01 * counts.sum() + 4, "values at an edge may fall on either side"


def test_event_files_hold_the_metrics(toy):
    """Where the tensorboard package is installed; one that goes on has every line once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted(SMALL, 20, "parts")
    folder = train(SMALL, name="parts").sae.path
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    lines = metrics(folder)
    assert [event.step for event in events.Scalars("l0")] == [int(line["tokens"]) for line in lines]
    found = [event.value for event in events.Scalars("loss/mse")]
    np.testing.assert_allclose(found, [float(line["loss_mse"]) for line in lines], rtol=1e-5)


def test_no_event_files_without_tensorboard(toy, monkeypatch):
    monkeypatch.setattr("lensae.stages.train.tensorboard.available", lambda: False)
    assert not (train(SMALL).sae.path / "tensorboard").exists()


# What a recipe leaves open.


def settled(rows: int, d_model: int, monkeypatch, cores: int = 2, **given):
    monkeypatch.setattr(plans, "cores", lambda: cores)
    recipe = TrainRecipe(**given)
    return plans.complete(recipe, rows, d_model), plans.make_plan(recipe, rows, d_model)


def test_more_rows_more_features(monkeypatch):
    """Up to what the machine has done in an hour; what is given stays."""
    widths = [settled(rows, 256, monkeypatch)[0].width for rows in (10_000, 299_999, 300_000, 2_999_999, 3_000_000)]
    assert widths == [4, 4, 8, 8, 16]
    assert settled(20_000_000, 2048, monkeypatch, cores=2)[0].width == 4
    assert settled(20_000_000, 2048, monkeypatch, cores=16)[0].width == 8
    assert settled(20_000_000, 2048, monkeypatch, cores=128)[0].width == 16
    assert settled(10_000, 256, monkeypatch, width=32, k=5, batch=7)[0] == TrainRecipe(width=32, k=5, batch=7)


def test_short_trainings_see_their_rows_often_and_learn_fast(monkeypatch):
    small, middle, large = (settled(rows, 576, monkeypatch)[1] for rows in (85_000, 1_000_000, 20_000_000))
    assert (small.epochs, middle.epochs, large.epochs) == (18, 2, 1)
    assert small.lr == middle.lr == 2e-3 and large.lr < 1e-3
    assert (small.batch, large.batch) == (2048, 4096)
    assert settled(10, 4, monkeypatch)[1].k == 8, "half of the features"


def test_few_steps_learn_faster_still(monkeypatch):
    """And their silent features are pulled at harder, unless the recipe says how hard."""
    for aux, expected in ((None, 1 / 8), (0.5, 0.5)):
        _recipe, plan = settled(266_000, 576, monkeypatch, epochs=1, batch=4096, aux=aux)
        assert (plan.aux, plan.steps, plan.lr, plan.beta2, plan.dead_window) == (expected, 65, 6e-3, 0.95, 4096)
    _recipe, plan = settled(266_000, 576, monkeypatch, batch=4096)
    assert (plan.aux, plan.steps, plan.lr) == (1 / 32, 390, 2e-3)


def test_features_that_fire_rarely_have_more_time_and_in_few_steps_a_slower_encoder(monkeypatch):
    """An average one of 18,432 fires on 7 rows of 4,096."""
    few = {"epochs": 1, "batch": 4096}
    _recipe, wide = settled(266_000, 576, monkeypatch, width=32, k=32, **few)
    assert wide.dead_window == 25 * 576 and wide.encoder_share == pytest.approx((4096 / 576 / 28) ** 0.5)
    _recipe, sparser = settled(266_000, 576, monkeypatch, width=32, k=32, target_l0=8.0, **few)
    assert sparser.dead_window == 4 * wide.dead_window and sparser.encoder_share == wide.encoder_share / 2
    for other in ({"width": 8}, {"width": 32, "lr": 1e-3}, {"width": 32, "epochs": 6}):
        _recipe, plan = settled(266_000, 576, monkeypatch, k=32, **few | other)
        assert plan.encoder_share == 1


@pytest.mark.parametrize(("arch", "share"), [("topk", 0.5), ("jumprelu", 0.5), ("relu", 1.0), ("tied-l1", 1.0)])
def test_the_encoder_learns_at_its_share_of_the_rate(arch, share):
    """Adam's first step is the learning rate wherever there is a gradient."""
    recipe = plans.complete(TrainRecipe(arch=arch, width=2, k=4, batch=64, epochs=1, warmup=0.0), 640, 16)
    plan = replace(plans.make_plan(recipe, 640, 16), encoder_share=0.5, lr=1e-3)
    trainer = registry.load("sae.architectures", arch).Trainer
    run = TrainingRun(recipe, plan, lambda window: trainer(16, 32, recipe, window))
    rows_BD = torch.randn(64, 16)
    run.start([rows_BD], (1.0,))
    before_FD = run.trainer.W_enc_FD.detach().clone()
    run.trainer.after_step = lambda: None
    run.step([rows_BD])
    moved_FD = (run.trainer.W_enc_FD.detach() - before_FD).abs()
    assert float(moved_FD.max()) == pytest.approx(share * 1e-3, rel=1e-3)


def test_massive_rows_weigh_no_more_than_is_allowed():
    """The error and the variance it is divided by, row by row."""
    x_BD, x_hat_BD = torch.randn(64, 16, dtype=torch.float64), torch.randn(64, 16, dtype=torch.float64)
    x_BD[[5, 9]] *= 1000

    def plain(limit: float) -> float:
        factors = [min(1.0, limit * 4 / float(row.norm())) for row in x_BD]
        error = sum(f**2 * float((a - b) @ (a - b)) for f, a, b in zip(factors, x_BD, x_hat_BD, strict=True))
        limited_BD = torch.stack([f * row for f, row in zip(factors, x_BD, strict=True)])
        return error / float((limited_BD - limited_BD.mean(0)).square().sum())

    for limit in (1.0, 3.0, 1e6):
        assert float(losses.unexplained(x_BD, x_hat_BD, limit=limit)) == pytest.approx(plain(limit))
    assert float(losses.unexplained(x_BD, x_hat_BD)) == pytest.approx(plain(1e6))


def test_massive_rows_do_not_spoil_the_others(toy, store):
    """Two rows in a hundred are a thousand times as long; the rest is explained as if they were not there."""
    few = [replace(one, activations={HOOK: one.activations[HOOK].copy()}) for one in made()]
    for one in few[::2]:
        one.activations[HOOK][7] *= 1000
    write_set(store / "massive" / HOOK, few, dtype="float32", shard_rows=300)
    recipe = replace(SMALL, epochs=10, lr=1e-2)

    def unexplained(found: str, **settings) -> float:
        report = train(replace(recipe, **settings), f"{found}/{HOOK}", name=f"n{len(settings)}")
        sae, x = report.fit.sae({}), torch.from_numpy(np.concatenate([one.activations[HOOK] for one in made()]))
        return float((sae.decode(sae.encode(x)) - x).square().sum() / (x - x.mean(0)).square().sum())

    clean, limited, spoilt = unexplained("toy"), unexplained("massive"), unexplained("massive", norm_limit=0.0)
    assert limited < 1.5 * clean < spoilt, (clean, limited, spoilt)


def test_the_choices_are_explained(toy, lensae):
    _status, _out, err = lensae("train", "--name", "auto")
    assert "width 4 for" in err and "learning rate 0.002: high" in err and "epochs: about 1.5 M" in err
    _status, _out, err = lensae("train", "--width", 2, "--lr", 0.001, "--epochs", 2, "--name", "given")
    assert "width 2 for" not in err and "learning rate 0.001:" not in err and "cores" in err
