"""What cannot be trained, and trainings that go wrong."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from helpers import HOOK, write_set
from training_helpers import SMALL, broken_after

from lensae.core.errors import LensaeError, UserError
from lensae.core.paths import read_set
from lensae.stages.train.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 33}, "k = 33 is more than the 32 features"),
        ({"arch": "batchtopk", "k": 33}, "more than the 32 features"),
        ({"arch": "jumprelu", "k": 33}, "k = 33 is more than the 32 features"),
        ({"arch": "relu", "target_l0": 40}, "L0 of 40 is more than the 32 features"),
    ],
)
def test_more_active_features_than_there_are(settings, message, toy):
    with pytest.raises(UserError, match=message):
        train(replace(SMALL, **settings))
    assert not list(toy.glob("saes/*"))


def test_an_empty_set(store):
    write_set(store / "toy" / HOOK, [])
    with pytest.raises(UserError, match="is empty"):
        train(SMALL)


@pytest.mark.parametrize("where", ["training", "heldout"])
def test_rows_that_are_not_numbers_are_named(where, toy):
    from lensae.store.reader import SetReader

    split = SetReader(read_set(toy)).split(0.1, 0)
    side = getattr(split, where)
    shard = max(range(len(side.indices)), key=lambda number: len(side.indices[number]))
    path = toy / "shards" / f"{shard:05d}.h5"
    with h5py.File(path, "r+") as file:
        row = int(file["documents/start"][side.indices[shard][-1]]) + 3
        file["activations"][row, 2] = np.nan
    with pytest.raises(LensaeError, match=f"1 rows of .* not finite, the first is row {row} of shards/{path.name}"):
        train(SMALL)
    assert not list(toy.glob("saes/*"))


def test_a_loss_that_is_no_number_keeps_the_best_weights(toy, monkeypatch):
    broken_after(monkeypatch, 30)
    report = train(SMALL)
    assert "the loss was nan" in report.fit.stopped and report.sae.completed_at
    assert report.fit.heldout.explained_variance > 0


def test_a_loss_that_is_no_number_at_once(toy, monkeypatch):
    broken_after(monkeypatch, 0)
    with pytest.raises(LensaeError, match="the loss was nan at step 0") as error:
        train(SMALL)
    assert "--lr" in error.value.hint and not list(toy.glob("saes/*"))


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(toy, monkeypatch):
    """Before anything was measured there are no best weights, but there is the checkpoint."""
    from lensae.sae.train import checkpoint as state

    broken_after(monkeypatch, 3)
    with pytest.raises(LensaeError, match="the loss was nan at step 3"):
        train(replace(SMALL, checkpoint_minutes=1e-9), name="broken")
    checkpoint = toy / "saes/broken/checkpoints/last.safetensors"
    facts, tensors = state._read(checkpoint)
    assert facts["state"]["step"] == 3 and not facts["state"]["stopped"]
    assert all(bool(torch.isfinite(t).all()) for name, t in tensors.items() if name.startswith("trainer/W"))


def dead_from(monkeypatch, share: float) -> None:
    """A relu family whose features never fire again after this share of the training."""
    from lensae.core import registry

    module = registry.load("sae.architectures", "relu")

    def after_step(self):
        if self.progress >= share:
            self.b_enc.data.fill_(-1e6)

    monkeypatch.setattr(module.Trainer, "after_step", after_step)


def test_every_feature_dead(toy, monkeypatch):
    dead_from(monkeypatch, 0)
    with pytest.raises(LensaeError, match="every feature was dead after") as error:
        train(replace(SMALL, arch="relu"))
    assert "--l1" in error.value.hint and not list(toy.glob("saes/*"))


def test_every_feature_dies(toy, monkeypatch):
    """What there was before is kept, and why it ended."""
    dead_from(monkeypatch, 0.5)
    report = train(replace(SMALL, arch="relu", epochs=10))
    assert "every feature was dead after" in report.fit.stopped
    assert report.fit.heldout.dead_share < 1 and report.fit.history[-1].tokens < 9 * 900
