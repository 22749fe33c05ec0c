"""The training loop and what it leaves on disk: interruptions, refusals, pairs of sets, sweeps."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import HOOK, MODEL, document, write_set

from lensae.errors import DamagedError, LensaeError, UserError
from lensae.paths import find_sae, find_set, read_set
from lensae.recipe import TrainRecipe, load_sweep, load_train
from lensae.sae.checkpoint import WEIGHTS
from lensae.stages.sweep import Point, marked, sweep, winner
from lensae.stages.train import Watcher, train
from lensae.store.writer import SetWriter, header

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 16
TARGET_HOOK = "blocks.1.hook_mlp_out"
SMALL = TrainRecipe(width=2, k=4, batch=64, epochs=4)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(count: int = 40, rows: int = 25) -> list:
    """Documents whose rows are sums of a few directions, so that there is something to learn."""
    directions = np.random.default_rng(7).normal(size=(24, WIDTH)).astype(np.float32)
    found = []
    for number in range(count):
        random = np.random.default_rng(number)
        weights = random.random((rows, 24)) * (random.random((rows, 24)) < 0.15)
        found.append(
            replace(document(number, rows, WIDTH), activations={HOOK: (weights @ directions).astype(np.float32)})
        )
    return found


def write_target(folder: Path, documents: list, width: int) -> None:
    turn = np.random.default_rng(5).normal(size=(WIDTH, width)).astype(np.float32)
    about = header(MODEL, TARGET_HOOK, width, "float32", {})
    with SetWriter(folder, about, {"corpus": "made-up", "seed": 0}, "python main.py collect", shard_rows=300) as writer:
        for one in documents:
            writer.append(replace(one, activations={TARGET_HOOK: one.activations[HOOK] @ turn}))
        writer.finish()


@pytest.fixture
def toy(store) -> Path:
    """A store with one made-up set of 1,000 rows."""
    return write_set(store / "toy" / HOOK, made(), dtype="float32", shard_rows=300)


class Stops(Watcher):
    """Interrupts after so many steps."""

    def __init__(self, after: int):
        self.left = after

    def step(self, rows: int, losses: list) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def digest(sae: Path) -> str:
    return hashlib.sha256((sae / WEIGHTS).read_bytes()).hexdigest()


def metrics(sae: Path) -> list[dict]:
    with open(sae / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def interrupted(recipe: TrainRecipe, after: int, name: str):
    with pytest.raises(KeyboardInterrupt):
        train(recipe, name=name, watcher=Stops(after))


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
    from lensae.sae import state

    saved = []
    monkeypatch.setattr(state, "save", lambda lane: saved.append(lane.place.step))
    train(replace(SMALL, checkpoint_minutes=1e-9))
    assert saved[:5] == [1, 2, 3, 4, 5]
    saved.clear()
    train(replace(SMALL, checkpoint_minutes=60), name="seldom")
    assert len(saved) == 1, "at the end alone"


def test_an_unfinished_training_is_no_sae(toy, lensae):
    interrupted(SMALL, 20, "parts")
    with pytest.raises(UserError, match="'parts' is unfinished") as error:
        find_sae(find_set(), "parts")
    assert error.value.hint.startswith("go on with: python main.py train") and "--name parts" in error.value.hint
    for command in (["evaluate"], ["index"], ["features", "top", 1]):
        status, _out, err = lensae(*command, "--set", "toy", "--sae", "parts")
        assert status == 2 and "unfinished" in err and len(err.strip().splitlines()) == 2, err
    with pytest.raises(UserError, match="unfinished training with other settings") as error:
        train(replace(SMALL, k=5), name="parts")
    assert "go on with: python main.py train" in error.value.hint
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


def start(store: Path, *arguments) -> subprocess.Popen:
    environment = {**os.environ, "LENSAE_STORE": str(store), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "main.py", "train", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def until(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.02)


@pytest.fixture
def long_recipe(tmp_path) -> Path:
    path = tmp_path / "long.toml"
    path.write_text(
        '[train]\narch = "batchtopk"\nwidth = 4\nk = 4\nbatch = 32\nepochs = 60\npatience = 60\n'
        "checkpoint_minutes = 1e-6\n"
    )
    return path


def test_killed_on_the_command_line(toy, store, long_recipe):
    """SIGKILL gives no time for anything; the same command ends in the same bytes."""
    checkpoint = toy / "saes/killed/checkpoints/last.safetensors"
    process = start(store, "--recipe", long_recipe, "--name", "killed")
    until(checkpoint.is_file, process)
    time.sleep(0.5)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (toy / "saes/killed" / WEIGHTS).exists()
    for name in ("killed", "whole"):
        process = start(store, "--recipe", long_recipe, "--name", name)
        said = process.communicate()[1]
        assert process.returncode == 0, said
        assert ("going on from step" in said) == (name == "killed")
    assert digest(toy / "saes/killed") == digest(toy / "saes/whole")
    assert metrics(toy / "saes/killed") == metrics(toy / "saes/whole")
    assert not list(toy.rglob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_on_the_command_line(number, toy, store, long_recipe):
    process = start(store, "--recipe", long_recipe, "--name", "stopped")
    until((toy / "saes/stopped/checkpoints/last.safetensors").is_file, process)
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == 130 and "the same command goes on from there" in said and "Traceback" not in said
    training = json.loads((toy / "saes/stopped/training.json").read_text())
    assert training["completed_at"] == "" and "--name stopped" in training["command"]


# What cannot be trained.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 33}, "k = 33 is more than the 32 features"),
        ({"arch": "batchtopk", "k": 33}, "more than the 32 features"),
        ({"arch": "jumprelu", "k": 33}, "L0 of 33 is more than the 32 features"),
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


def broken_after(monkeypatch, steps: int, name: str = "topk"):
    """A family whose loss is no number after so many steps."""
    from lensae import registry

    module = registry.load("sae.architectures", name)
    forward = module.Trainer.forward

    def broken(self, *rows):
        step = forward(self, *rows)
        if self.training and self.progress * 64 >= steps:
            step.losses["mse"] = step.losses["mse"] * float("nan")
        return step

    monkeypatch.setattr(module.Trainer, "forward", broken)


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
    from lensae.sae import state

    broken_after(monkeypatch, 3)
    with pytest.raises(LensaeError, match="the loss was nan at step 3"):
        train(replace(SMALL, checkpoint_minutes=1e-9), name="broken")
    checkpoint = toy / "saes/broken/checkpoints/last.safetensors"
    facts, tensors = state._read(checkpoint)
    assert facts["place"]["step"] == 3 and not facts["place"]["stopped"]
    assert all(bool(torch.isfinite(t).all()) for name, t in tensors.items() if name.startswith("trainer/W"))


def dead_from(monkeypatch, share: float) -> None:
    """A relu family whose features never fire again after this share of the training."""
    from lensae import registry

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
    assert report.sae.training["target"]["name"] == f"toy/{TARGET_HOOK}"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, f"toy/{HOOK}", "parts", Stops(50))
    assert digest(train(recipe, f"toy/{HOOK}", "parts").sae.path) == digest(report.sae.path)


def test_what_a_transcoder_predicts_is_the_target(toy, store):
    """The saved SAE, on the stored rows of one set, gives those of the other."""
    from lensae.sae.checkpoint import load
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
    assert plain.fit.agreement is None and "encoder_agreement" not in plain.sae.training
    status, _out, err = lensae("train", "--encoder-dtype", "int8")
    assert status == 2 and "encoder_dtype cannot be 'int8'" in err


# Sweeps.


def test_lists_in_a_recipe_and_on_the_command_line(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[train]\narch = ["topk", "relu"]\nk = [4, 8]\nl1 = 0.2\nseed = [3, 5]\n')
    recipes = load_sweep(path, k=[16])
    assert [(r.arch, r.k, r.l1, r.seed, r.init_seed) for r in recipes] == [
        ("topk", 16, 0.2, 3, None),
        ("topk", 16, 0.2, 3, 5),
        ("relu", 16, 0.2, 3, None),
        ("relu", 16, 0.2, 3, 5),
    ]
    with pytest.raises(UserError, match="8 SAEs"):
        load_train(path)
    for text in ("epochs = [1, 2]", "k = []", "k = [4, 'x']", "k = 4.5", "target = 3"):
        path.write_text(f"[train]\n{text}\n")
        with pytest.raises(UserError, match="cannot be"):
            load_sweep(path)


SWEEP = [
    replace(SMALL, arch="topk"),
    replace(SMALL, arch="topk", init_seed=5),
    replace(SMALL, arch="batchtopk", k=2),
    replace(SMALL, arch="relu", width=4, l1=0.5),
    replace(SMALL, arch="tied-l1"),
    replace(SMALL, arch="jumprelu", k=6),
]


def test_a_sweep_trains_what_single_trainings_do(toy, monkeypatch):
    """Each of its SAEs is the one that it would have been alone, and the rows are read once for all."""
    from lensae.store.stream import RowStream

    epochs = []
    epoch = RowStream.epoch
    monkeypatch.setattr(RowStream, "epoch", lambda self, *at: epochs.append(at) or epoch(self, *at))
    report = sweep(SWEEP, name="all")
    assert sorted(epochs) == [(0, 0), (0, 0), (1, 0), (2, 0), (3, 0)]  # the first for a sample to start from
    for recipe in SWEEP:
        alone = train(recipe).sae
        among = toy / "saes" / f"all-{alone.name}"
        assert digest(among) == digest(alone.path) and metrics(among) == metrics(alone.path)
    assert len({digest(toy / "saes" / point.name) for point in report.points}) == len(SWEEP)


def test_an_interrupted_sweep_goes_on(toy):
    recipes = SWEEP[:4]
    expected = {train(recipe, name=f"x-{n}").sae.training["recipe"]["arch"]: n for n, recipe in enumerate(recipes)}
    assert len(expected) == 3
    whole = [digest(toy / "saes" / f"x-{n}") for n in range(len(recipes))]
    for n in range(len(recipes)):
        shutil.rmtree(toy / "saes" / f"x-{n}")
    for after in (5, 20):
        with pytest.raises(KeyboardInterrupt):
            sweep(recipes, watcher=Stops(after))
    # as if it had been killed between two writes: one of them is further back than the others
    behind = toy / "saes/topk-32-k4/checkpoints/last.safetensors"
    older = behind.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        sweep(recipes, watcher=Stops(12))
    behind.write_bytes(older)
    report = sweep(recipes)
    names = ("topk-32-k4", "topk-32-k4-seed5", "batchtopk-32-k2", "relu-64-l1-0.5")
    assert [digest(toy / "saes" / name) for name in names] == whole
    assert report.reused == 0 and sweep(recipes).reused == 4


def test_sweeps_share_what_decides_the_rows(toy):
    for change in ({"seed": 1}, {"batch": 32}, {"shuffle_rows": 64}):
        with pytest.raises(UserError, match=f"cannot differ in {next(iter(change))}"):
            sweep([SMALL, replace(SMALL, k=2, **change)])
    assert not list(toy.glob("saes/*"))


def test_a_sweep_takes_what_is_there_and_says_what_failed(toy, monkeypatch):
    done = train(SWEEP[0], name="mine").sae.name
    broken_after(monkeypatch, 0, "batchtopk")
    report = sweep(SWEEP[:3])
    assert report.reused == 1 and {point.name for point in report.points} == {done, "topk-32-k4-seed5"}
    assert list(report.failed) == ["batchtopk-32-k2"] and "loss was nan" in report.failed["batchtopk-32-k2"]
    assert not (toy / "saes/batchtopk-32-k2").exists()


def point(l0: float, ev: float) -> Point:
    return Point(f"{l0:g}", "topk", 8, {}, l0, ev, 0.1, 0.0, 1.0)


def on_front_by_definition(points: list[Point]) -> set[str]:
    """No other has as little L0 and as much explained variance, one of them better."""
    return {
        p.name
        for p in points
        if not any(
            q.l0 <= p.l0
            and q.explained_variance >= p.explained_variance
            and (q.l0, q.explained_variance) != (p.l0, p.explained_variance)
            for q in points
        )
    }


def test_the_front_and_the_winner():
    for seed in range(30):
        random = np.random.default_rng(seed)
        points = [
            point(float(l0), float(ev))
            for l0, ev in zip(random.permutation(40)[:12] + 1, random.random(12), strict=True)
        ]
        assert {p.name for p in marked(points) if p.front} == on_front_by_definition(points)
    chosen, rule = winner(marked([point(8, 0.5), point(16, 0.75), point(32, 0.8), point(64, 0.82), point(20, 0.6)]))
    assert chosen.l0 == 16 and "bend" in rule
    chosen, rule = winner(marked([point(32, 0.5), point(32.5, 0.6), point(33, 0.55)]))
    assert chosen.l0 == 32.5 and "much the same L0" in rule
    chosen, rule = winner(marked([point(8, 0.5), point(64, 0.8)]))
    assert chosen.l0 == 64 and "no bend" in rule
    chosen, rule = winner(marked([point(16, 0.664), point(32, 0.7115), point(64, 0.76)]))
    assert chosen.l0 == 64 and "no bend" in rule
    assert winner([]) == (None, "")


def test_a_sweep_on_the_command_line(toy, lensae):
    options = (
        "--width",
        2,
        "--batch",
        64,
        "--epochs",
        2,
        "--k",
        2,
        "--k",
        4,
        "--k",
        8,
        "--arch",
        "topk",
        "--arch",
        "relu",
        "--l1",
        0.05,
        "--l1",
        0.1,
    )
    status, out, err = lensae("train", *options)
    assert status == 0, err
    assert "is the winner: the " in out and "relu-32-l1-0.1" in out and "no CE: model 'toy'" in out, out
    status, out, _err = lensae("train", *options, "--json")
    found = json.loads(out)
    assert status == 0 and len(found["saes"]) == 5 and found["winner"] in {one["name"] for one in found["saes"]}
    assert [Path(path).name for path in found["figures"]] == ["pareto.png", "l1.png"]
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in found["figures"])
    assert all(one["ce_recovered"] is None for one in found["saes"]) and "toy" in found["no_losses"]
    folder = Path(found["folder"])
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["sae"] for row in rows} == {one["name"] for one in found["saes"]} and rows[0]["loss_mse"]
    status, _out, err = lensae("train", *options, "--k", 100)
    assert status == 2 and "more than the 32 features" in err


# What is drawn and written for other tools.


def test_the_curves_of_a_training(toy, lensae):
    status, out, err = lensae("train", "--width", 2, "--k", 4, "--epochs", 2, "--json")
    assert status == 0, err
    [figure] = json.loads(out)["figures"]
    assert Path(figure).read_bytes().startswith(b"\x89PNG") and Path(figure).stat().st_size > 20_000


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
    monkeypatch.setattr("lensae.stages.event_files.available", lambda: False)
    assert not (train(SMALL).sae.path / "tensorboard").exists()


# What a recipe leaves open.


def settled(rows: int, d_model: int, monkeypatch, cores: int = 2, **given):
    from lensae.sae import plan

    monkeypatch.setattr(plan, "cores", lambda: cores)
    recipe = TrainRecipe(**given)
    return plan.complete(recipe, rows, d_model), plan.make_plan(recipe, rows, d_model)


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


def test_the_choices_are_explained(toy, lensae):
    _status, _out, err = lensae("train", "--name", "auto")
    assert "width 4 for" in err and "learning rate 0.002: high" in err and "epochs: about 1.5 M" in err
    _status, _out, err = lensae("train", "--width", 2, "--lr", 0.001, "--epochs", 2, "--name", "given")
    assert "width 2 for" not in err and "learning rate 0.001:" not in err and "cores" in err


def test_a_second_signal_does_not_wait():
    from lensae.stages.interrupts import requested

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with requested() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
