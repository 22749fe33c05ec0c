"""Trainings that are interrupted, by whatever, go on and end in the same bytes."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
from helpers import document, write_set
from training_helpers import SMALL, WIDTH, Stops, digest, interrupted, metrics

from lensae.core.errors import DamagedError, LensaeError, UserError
from lensae.core.paths import find_sae, find_set
from lensae.sae.formats.saelens import WEIGHTS
from lensae.stages.train.run import train
from lensae.stages.train.watcher import Watcher

pytestmark = pytest.mark.usefixtures("one_thread")


FAMILIES = [
    {"arch": "topk"},
    {"arch": "batchtopk"},
    {"arch": "matryoshka"},
    {"arch": "relu"},
    {"arch": "relu", "target_l0": 4},
    {"arch": "tied-l1"},
    {"arch": "gated", "target_l0": 4},
    {"arch": "jumprelu"},
    {"arch": "topk", "average": 0.9, "resample": 3},
]


@pytest.mark.parametrize("settings", FAMILIES, ids=lambda s: "-".join(map(str, s.values())))
def test_going_on_ends_in_the_same_bytes(settings, toy):
    """Interrupted three times, in the middle of epochs, at an end and right after a start."""
    recipe = replace(SMALL, **settings, lr=5e-3)
    whole = train(recipe, name="whole").sae.path
    steps = int(metrics(whole)[-1]["step"])
    assert steps >= 50 and len(metrics(whole)) >= 8
    for after in (1, steps // 4, steps // 2 + 3):
        interrupted(recipe, after, "parts")
        folder = toy / "saes" / "parts"
        assert not (folder / WEIGHTS).exists() and (folder / "checkpoints/last.safetensors").is_file()
    parts = train(recipe, name="parts").sae.path
    assert digest(parts) == digest(whole) and metrics(parts) == metrics(whole)
    assert sorted(p.name for p in parts.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert not list(toy.rglob("*.partial"))


def test_going_on_from_every_step(toy):
    """One step at a time, each in a training of its own."""
    recipe = replace(SMALL, epochs=2, batch=256)
    whole = train(recipe, name="whole").sae.path
    for _ in range(int(metrics(whole)[-1]["step"])):
        interrupted(recipe, 1, "parts")
    parts = train(recipe, name="parts").sae.path
    assert digest(parts) == digest(whole) and metrics(parts) == metrics(whole)


def test_early_stopping_goes_on_counting(toy):
    recipe = replace(SMALL, epochs=30, lr=0.5, patience=2, decay=0, warmup=0, arch="relu")
    whole = train(recipe, name="whole")
    assert "no better" in whole.fit.stopped
    interrupted(recipe, int(metrics(whole.sae.path)[-1]["step"]) - 1, "parts")
    parts = train(recipe, name="parts")
    assert parts.fit.stopped == whole.fit.stopped and metrics(parts.sae.path) == metrics(whole.sae.path)


def test_a_checkpoint_every_so_many_minutes(toy, monkeypatch):
    """Without any interruption: what is killed loses no more than that."""
    from lensae.sae.train import checkpoint as state

    saved = []
    monkeypatch.setattr(state, "save", lambda run: saved.append(run.state.step))
    train(replace(SMALL, checkpoint_minutes=1e-9))
    assert saved[:5] == [1, 2, 3, 4, 5]
    saved.clear()
    train(replace(SMALL, checkpoint_minutes=60), name="seldom")
    assert len(saved) == 1, "at the end alone"


def test_an_unfinished_training_is_no_sae(toy, lensae):
    interrupted(SMALL, 20, "parts")
    with pytest.raises(UserError, match="'parts' is unfinished") as error:
        find_sae(find_set(), "parts")
    assert error.value.hint.startswith("resume with: lensae train") and "--name parts" in error.value.hint
    for command in (["evaluate"], ["index"], ["features", "top", 1]):
        status, _out, err = lensae(*command, "--set", "toy", "--sae", "parts")
        assert status == 2 and "unfinished" in err and len(err.strip().splitlines()) == 2, err
    with pytest.raises(UserError, match="unfinished training with other settings") as error:
        train(replace(SMALL, k=5), name="parts")
    assert "resume with: lensae train" in error.value.hint
    assert train(SMALL, name="parts").sae.completed_at


def test_the_same_recipe_goes_on_without_a_name(toy):
    with pytest.raises(KeyboardInterrupt):
        train(SMALL, watcher=Stops(20))
    assert train(replace(SMALL, lr=1e-3)).sae.name == "topk-32-k4-2", "other settings: another training"
    report = train(SMALL)
    assert report.sae.name == "topk-32-k4" and report.sae.completed_at
    assert train(SMALL).sae.name == "topk-32-k4-3"


def test_other_rows_are_another_training(toy):
    interrupted(SMALL, 20, "parts")
    extra = [document(number, 20, WIDTH) for number in range(100, 110)]
    spec = {"corpus": "more", "seed": 0}
    write_set(toy, extra, dtype="float32", spec=spec, shard_rows=300)
    with pytest.raises(UserError, match="other rows"):
        train(SMALL, name="parts")


def test_two_processes_on_one_name(toy):
    class Meanwhile(Watcher):
        told = ""

        def step(self, rows, losses):
            if not self.told:
                with pytest.raises(LensaeError, match="another process is training") as error:
                    train(SMALL, name="same")
                self.told = str(error.value)

    watcher = Meanwhile()
    assert train(SMALL, name="same", watcher=watcher).sae.completed_at and watcher.told


def test_a_damaged_checkpoint_is_said(toy):
    interrupted(SMALL, 20, "parts")
    path = toy / "saes/parts/checkpoints/last.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"last\.safetensors cannot be used"):
        train(SMALL, name="parts")
    path.unlink()
    assert train(SMALL, name="parts").sae.completed_at


def test_a_second_signal_does_not_wait():
    from lensae.stages.shared.interrupts import requested

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with requested() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
