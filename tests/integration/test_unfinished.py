"""Trainings that were cut short: shown as what they are, and never taken for an SAE."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import HOOK, documents, write_set
from training_helpers import Stops

from lensae.core.errors import UserError
from lensae.core.paths import find_pair, find_sae, find_set
from lensae.core.recipe import TrainRecipe
from lensae.stages.train.folder import TrainingFolder
from lensae.stages.train.run import train

SMALL = TrainRecipe(width=2, k=4, batch=64, epochs=4)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def toy(store) -> Path:
    """A set with one finished SAE and a training that was interrupted after it."""
    folder = write_set(
        store / "toy" / HOOK, documents(40), dtype="float32", spec={"corpus": "made-up", "seed": 0, "generate": False}
    )
    train(SMALL, name="whole")
    with pytest.raises(KeyboardInterrupt):
        train(replace(SMALL, k=2), name="parts", watcher=Stops(8))
    return folder


def test_the_list_shows_it_as_unfinished(lensae, toy):
    status, out, _err = lensae("store", "list")
    line = next(line for line in out.splitlines() if "  SAE parts" in line)
    assert status == 0 and line.split() == ["SAE", "parts", "unfinished"]
    assert "unfinished" not in next(line for line in out.splitlines() if "  SAE whole" in line)
    told = " ".join(out.split())
    assert "SAE parts (step 8 of " in told and "408 tokens) is unfinished; resume with: lensae train" in told
    assert "--k 2" in told and "--name parts" in told
    [row] = json.loads(lensae("store", "list", "--json")[1])
    [sae] = row["unfinished_saes"]
    assert row["saes"] == ["whole"] and (sae["name"], sae["step"], sae["tokens"]) == ("parts", 8, 408)
    assert sae["steps"] > 8 and sae["running"] is False
    out = " ".join(lensae("store", "info")[1].split())
    assert "SAE whole SAE parts (step 8 of" in out and "resume with: lensae train" in out


def test_one_that_another_process_is_at(lensae, toy):
    held = TrainingFolder(toy / "saes" / "parts")
    out = lensae("store", "list")[1]
    held.close()
    assert "in training" in out and "resume with" not in out
    assert "resume with" in lensae("store", "list")[1]


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_one_without_a_checkpoint_to_go_by(damage, lensae, toy):
    checkpoint = toy / "saes" / "parts" / "checkpoints" / "last.safetensors"
    if damage == "gone":
        checkpoint.unlink()
    else:
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    status, out, _err = lensae("store", "list")
    assert status == 0 and "SAE parts (no checkpoint yet) is unfinished" in " ".join(out.split())


def test_when_it_is_finished_it_is_an_sae(lensae, toy):
    train(replace(SMALL, k=2), name="parts")
    [row] = json.loads(lensae("store", "list", "--json")[1])
    assert sorted(row["saes"]) == ["parts", "whole"] and not row["unfinished_saes"]
    assert "unfinished" not in lensae("store", "list")[1]


def test_it_is_never_the_current_one(lensae, toy):
    assert find_pair(None, None)[1].name == find_pair(f"toy/{HOOK}", None)[1].name == "whole"
    assert find_sae(find_set()).name == "whole"
    status, _out, err = lensae("index")
    assert status == 0 and "SAE whole" in err
    for pair in (
        (None, "parts"),
        ("toy", "parts"),
        ("toy", str(toy / "saes" / "parts")),
        (None, str(toy / "saes/parts")),
    ):
        with pytest.raises(UserError, match="'parts' is unfinished") as error:
            find_pair(*pair)
        assert "resume with: lensae train" in error.value.hint
    # Weights without the last word that they are whole, by their path.
    for name in ("cfg.json", "sae_weights.safetensors"):
        shutil.copy(toy / "saes" / "whole" / name, toy / "saes" / "parts" / name)
    write_set(toy.parent / "later", documents(6))  # is the current set; the name is found where it is
    for set_name, sae_name in (
        (None, "parts"),
        (None, str(toy / "saes/parts")),
        (f"toy/{HOOK}", str(toy / "saes/parts")),
    ):
        with pytest.raises(UserError, match="'parts' is unfinished"):
            find_pair(set_name, sae_name)
    shutil.rmtree(toy.parent / "later")
    shutil.rmtree(toy / "saes" / "whole")
    for command in (["evaluate"], ["index"], ["features", "top", 1], ["steer", "--feature", 1]):
        status, _out, err = lensae(*command)
        assert status == 2 and "'parts' is unfinished" in err and "resume with" in err, err
