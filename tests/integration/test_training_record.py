"""training.json: written once, checked once; and which SAE is the current one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from training_helpers import SMALL, Stops, digest

from lensae.core.errors import DamagedError, UserError
from lensae.core.paths import find_pair, find_sae, find_set, list_saes
from lensae.core.training_record import read_training, training_from_json
from lensae.stages.train.data import open_data
from lensae.stages.train.record import find_trained
from lensae.stages.train.run import train
from lensae.stages.train.sweep import sweep

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_is_written_is_what_is_read(toy):
    report = train(SMALL)
    record, written = report.sae.training, json.loads((report.sae.path / "training.json").read_text())
    assert read_training(report.sae.path) == record == training_from_json(written, "training.json")
    assert record.to_json() == written and "target" not in written and "encoder_agreement" not in written
    assert record.recipe == SMALL and record.weights_sha256 == digest(report.sae.path)
    assert record.heldout["rows"] > 0 and record.plan["d_sae"] == 32 and "train --set" in record.command


def test_one_that_was_written_before_digests_were(toy):
    folder = train(SMALL).sae.path
    values = json.loads((folder / "training.json").read_text())
    del values["weights_sha256"], values["command"]
    values["recipe"]["of_a_later_version"] = 1
    (folder / "training.json").write_text(json.dumps(values))
    record = find_sae(find_set()).training
    assert record.weights_sha256 is None and record.recipe == SMALL


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("set", None, "has set 'None'"),
        ("set", {"name": "toy"}, "set lacks 'hook'"),
        ("recipe", {"k": "many"}, "recipe cannot be used"),
        ("recipe", {"k": -1}, "recipe cannot be used"),
        ("seconds", "long", "has seconds 'long'"),
        ("heldout", [], "has heldout"),
        ("completed_at", 3, "has completed_at"),
    ],
)
def test_one_that_was_edited(entry, value, message, toy):
    folder = train(SMALL, index=False).sae.path
    values = json.loads((folder / "training.json").read_text()) | {entry: value}
    (folder / "training.json").write_text(json.dumps(values))
    with pytest.raises(DamagedError, match=message):
        list_saes(find_set())


def test_the_same_recipe_on_the_same_rows(toy):
    trained = train(SMALL, name="one", index=False).sae
    with pytest.raises(KeyboardInterrupt):
        train(replace(SMALL, k=2), name="unfinished", watcher=Stops(3))
    data = open_data(SMALL, None)
    assert find_trained(data, SMALL) == trained
    assert find_trained(data, replace(SMALL, k=2)) is None and find_trained(data, replace(SMALL, k=3)) is None


def test_an_sae_that_was_not_trained_here(toy, tmp_path):
    folder = train(SMALL, index=False).sae.path
    (folder / "training.json").unlink()
    elsewhere = folder.rename(tmp_path / "elsewhere")
    sae = find_sae(find_set(), str(elsewhere))
    assert sae.training is None and sae.is_finished and sae.completed_at == ""


def test_the_winner_of_a_sweep_is_current_until_a_later_training(toy):
    recipes = [replace(SMALL, k=k) for k in (8, 4, 2)]
    report = sweep(recipes)
    names = [sae.name for sae in list_saes(find_set())]
    assert report.winner.name == "topk-32-k8" and names[-1] == "topk-32-k8" != report.points[0].name
    assert find_sae(find_set()).name == find_pair(None, None)[1].name == "topk-32-k8"
    assert report.index.sae_name == "topk-32-k8" and (toy / "saes/topk-32-k8/index").is_dir()
    assert not (toy / "saes/topk-32-k4/index").exists()
    train(replace(SMALL, k=3))
    assert find_sae(find_set()).name == find_pair(None, None)[1].name == "topk-32-k3"
    again = sweep(recipes)
    assert again.reused == 3 and find_sae(find_set()).name == "topk-32-k8"


def test_training_ends_with_an_index(toy, lensae):
    options = ("train", "--width", 2, "--k", 4, "--batch", 64, "--epochs", 2)
    status, out, _err = lensae(*options, "--no-index")
    assert status == 0 and not (toy / "saes/topk-32-k4/index").exists() and "features fire" not in out
    status, out, err = lensae(*options)
    assert status == 0 and "features fire" in out and "indexing 32 features" in err
    feature = json.loads(lensae("features", "list", "--json")[1])[0]["feature"]
    assert lensae("features", "top", feature)[0] == 0
    found = json.loads(lensae(*options, "--json", "--name", "third")[1])
    assert found["index"]["sae_name"] == "third" and found["index"]["rows"] == 1000


def test_an_interrupted_index_leaves_the_sae(toy, lensae, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lensae.stages.index.build", interrupt)
    status, _out, err = lensae("train", "--width", 2, "--k", 4, "--batch", 64, "--epochs", 2)
    assert status == 130 and "topk-32-k4 is trained; finish its index with: python main.py index" in err
    assert find_sae(find_set()).name == "topk-32-k4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--k", 100_000), "k = 100000 is more than the 64 features there are"),
        (("--arch", "relu", "--target-l0", 65), "an L0 of 65 is more than the 64 features"),
        (("--width", 1e9), "training 16,000,000,000 features takes 9,537 GiB of memory, this machine has"),
        (("--arch", "topk", "--arch", "nope"), "no architecture named 'nope'"),
    ],
)
def test_refused_before_anything_is_allocated(arguments, message, toy, lensae):
    status, _out, err = lensae("train", *arguments)
    assert status == 2 and message in err and len(err.strip().splitlines()) == 2, err
    assert not list(toy.glob("saes/*"))


def test_the_global_random_state_stays(toy):
    torch.manual_seed(11)
    expected = torch.randn(3)
    torch.manual_seed(11)
    train(SMALL, index=False)
    sweep([SMALL, replace(SMALL, k=2)])
    assert torch.equal(torch.randn(3), expected) and torch.get_float32_matmul_precision() == "highest"


def test_a_sweep_of_what_cannot_be_chosen(toy):
    with pytest.raises(UserError, match="more than the 32 features"):
        sweep([SMALL, replace(SMALL, k=64)])
