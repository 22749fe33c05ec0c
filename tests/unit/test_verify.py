"""Verifying a set with its SAEs, and what loading an SAE notices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import MODEL, documents, write_set

from lensae.core.durable import read_json, write_json
from lensae.core.errors import DamagedError
from lensae.core.paths import read_set
from lensae.core.recipe import TrainRecipe
from lensae.core.training_record import SetRecord, TrainingRecord
from lensae.sae.base import SAE
from lensae.sae.formats import saelens
from lensae.stages import store as stage
from lensae.store.verify import verify as verify_shards


def save_sae(folder: Path, record: bool = True, **more) -> SAE:
    """A made-up SAE of 32 features, saved as training saves it or, without a `record`, as another tool does."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (16, 32), "W_dec": (32, 16), "b_enc": (32,), "b_dec": (16,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sae = SAE(saelens.config("standard", 16, 32, {}), tensors | more)
    digest = saelens.save(folder, sae)
    if record:
        write_record(folder, completed_at="2026-01-01", weights_sha256=digest)
    return sae


def write_record(folder: Path, **values: str) -> None:
    """A record of a training on a set that is not there."""
    trained_on = SetRecord(name="toy/made-up", hook="made-up", rows=1, model=MODEL, shards_sha256=[])
    write_json(folder / "training.json", TrainingRecord(recipe=TrainRecipe(), set=trained_on, **values).to_json())


def flip_a_bit(path: Path, position: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture
def sae_folder(folder) -> Path:
    """A set with two whole SAEs, the second without a record of its digest."""
    write_set(folder, documents())
    save_sae(folder / "saes" / "foreign", record=False)
    save_sae(folder / "saes" / "ours")
    return folder / "saes" / "ours"


def test_a_whole_set(sae_folder, lensae):
    report = stage.verify()
    assert (report.saes, report.indexes, report.faults) == (2, 0, ()) and report.shards > 3
    status, out, _err = lensae("store", "verify")
    assert status == 0 and f"all of {report.shards} shards, 2 SAEs are whole" in out
    found = json.loads(lensae("store", "verify", "--json")[1])
    assert found["saes"] == 2 and found["faults"] == []


def test_a_flipped_bit_in_the_weights_is_noticed(sae_folder, lensae):
    whole = saelens.load(sae_folder)
    flip_a_bit(sae_folder / saelens.WEIGHTS)
    with pytest.raises(DamagedError, match=r"sae_weights\.safetensors has changed since it was saved"):
        saelens.load(sae_folder)
    status, out, _err = lensae("store", "verify")
    assert status == 1 and "saes/ours/sae_weights.safetensors file: bytes differ" in " ".join(out.split())
    flip_a_bit(sae_folder / saelens.WEIGHTS)
    again = saelens.load(sae_folder)
    assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)


def test_every_byte_of_the_weights_counts(sae_folder):
    size = (sae_folder / saelens.WEIGHTS).stat().st_size
    for position in range(0, size, size // 40):
        flip_a_bit(sae_folder / saelens.WEIGHTS, position)
        with pytest.raises(DamagedError):
            saelens.load(sae_folder)
        flip_a_bit(sae_folder / saelens.WEIGHTS, position)
    saelens.load(sae_folder)


def test_an_sae_from_elsewhere_loads_as_it_is(sae_folder):
    foreign = sae_folder.with_name("foreign")
    flip_a_bit(foreign / saelens.WEIGHTS)
    saelens.load(foreign)


@pytest.mark.parametrize(
    ("damage", "file", "what"),
    [
        (lambda f: save_sae(f, record=False, b_enc=torch.full((32,), torch.nan)), saelens.WEIGHTS, "not finite"),
        (lambda f: save_sae(f, record=False, b_enc=torch.zeros(31)), saelens.WEIGHTS, "of shape (31,), not (32,)"),
        (lambda f: (f / saelens.WEIGHTS).unlink(), saelens.WEIGHTS, "missing"),
        (lambda f: (f / saelens.WEIGHTS).write_bytes(b"nonsense"), saelens.WEIGHTS, "cannot be read"),
        (lambda f: (f / "cfg.json").write_text("{"), "cfg.json", "is not JSON"),
        (lambda f: (f / "cfg.json").write_text('{"d_in": []}'), "cfg.json", "not the configuration of an SAE"),
        (lambda f: (f / "cfg.json").unlink(), "cfg.json", "missing"),
        (lambda f: (f / "training.json").write_text("[]"), "training.json", "does not hold a JSON object"),
    ],
)
def test_each_fault_names_the_file_and_the_reason(sae_folder, damage, file, what):
    damage(sae_folder)
    faults = [fault for fault in stage.verify().faults if fault.file == f"saes/ours/{file}"]
    assert any(what in fault.what for fault in faults), faults


def test_a_tensor_that_is_missing_is_named(sae_folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(sae_folder / saelens.WEIGHTS)
    del tensors["W_dec"]
    save_file(tensors, sae_folder / saelens.WEIGHTS)
    assert ("W_dec", "missing") in [(fault.where, fault.what) for fault in stage.verify().faults]


def test_bfloat16_weights_are_no_fault(sae_folder):
    from safetensors.torch import load_file, save_file

    foreign = sae_folder.with_name("foreign")
    tensors = load_file(foreign / saelens.WEIGHTS)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, foreign / saelens.WEIGHTS)
    assert not stage.verify().faults


def test_an_unfinished_training_is_no_fault(sae_folder):
    shutil.copytree(sae_folder, sae_folder.with_name("unfinished"))
    write_record(sae_folder.with_name("unfinished"), completed_at="")
    (sae_folder.with_name("unfinished") / saelens.WEIGHTS).unlink()
    report = stage.verify()
    assert report.saes == 2 and not report.faults


def test_training_records_the_digest(trained):
    [folder] = trained.glob("*/*/saes/*")
    assert read_json(folder / "training.json")["weights_sha256"] == saelens.weights_digest(folder)


def test_faults_are_found_where_processes_cannot_fork(folder, monkeypatch):
    monkeypatch.setattr("lensae.store.verify._start_method", lambda: "spawn")
    write_set(folder, documents())
    path = folder / "shards" / "00001.h5"
    flip_a_bit(path, path.stat().st_size // 2)
    [fault] = [fault for _file, faults in verify_shards(read_set(folder)) for fault in faults]
    assert fault.file == "shards/00001.h5"


def test_an_index_is_verified(folder, lensae, trained, monkeypatch, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.setenv("LENSAE_STORE", str(tmp_path / "copy"))
    assert lensae("store", "verify")[0] == 0 and stage.verify().indexes == 1
    file = max((tmp_path / "copy").glob("*/*/saes/*/index/**/*.h5"), key=lambda path: path.stat().st_size)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :])
    status, out, _err = lensae("store", "verify")
    assert status == 1 and file.name in out
