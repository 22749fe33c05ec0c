"""Several processes that train one SAE: what they make is what a single one makes, whatever ends them meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
import torchrun_trainings
from helpers import HOOK, write_set
from processes import torchrun
from safetensors.numpy import load_file
from training_helpers import SMALL, TARGET_HOOK, Stops, made, metrics, write_target

from lensae.core.recipe import TrainRecipe
from lensae.sae import kernels
from lensae.sae.architectures._sharding import random_rows
from lensae.sae.distributed.process_group import ProcessGroup
from lensae.sae.formats.saelens import WEIGHTS
from lensae.stages.train.run import train

# 63 features: two processes cannot have as many; and eight of them at once, learning fast, so that some die so early.
SHORT = replace(SMALL, epochs=2, width=63 / 16, k=8, lr=2e-2)
FAMILIES = {
    "topk": {},
    "topk-revived": {"resample": 2, "average": 0.9},
    "batchtopk": {"arch": "batchtopk"},
    "matryoshka": {"arch": "matryoshka"},
    "relu": {"arch": "relu"},
    "relu-l0": {"arch": "relu", "target_l0": 4},
    "tied-l0": {"arch": "tied-l1", "target_l0": 4},
    "gated": {"arch": "gated", "target_l0": 4},
    "jumprelu": {"arch": "jumprelu"},
}
TARGETS = {"topk": {}, "gated": {"arch": "gated"}, "jumprelu": {"arch": "jumprelu"}}
ONE_ROW_LEFT = 29  # rows of a batch: the last of 900 rows is one, which the second process has nothing of


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A store with a set of 1,000 rows and one of targets."""
    store = tmp_path_factory.mktemp("process") / "store"
    write_target(store / "toy" / TARGET_HOOK, made(), 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSAE_STORE", str(store))
        yield write_set(store / "toy" / HOOK, made(), dtype="float32", shard_rows=300)


def all_recipes() -> dict[str, TrainRecipe]:
    """What is trained alone and together."""
    found = {name: replace(SHORT, **settings) for name, settings in FAMILIES.items()}
    found |= {
        f"to-{name}": replace(SHORT, target=f"toy/{TARGET_HOOK}", **settings) for name, settings in TARGETS.items()
    }
    return found | {
        f"uneven-{name}": replace(found[name], batch=ONE_ROW_LEFT) for name in ("topk", "batchtopk", "relu")
    }


def evenly_batched() -> dict[str, TrainRecipe]:
    """Those where a batch of one row would be nothing new."""
    return {name: recipe for name, recipe in all_recipes().items() if recipe.batch != ONE_ROW_LEFT}


@pytest.fixture(scope="module")
def alone(toy) -> Path:
    """All of them, by a single process."""
    for name, recipe in all_recipes().items():
        train(recipe, f"toy/{HOOK}", f"alone-{name}", index=False)
    return toy


def train_by_two(folder: Path, prefix: str, by_feature: bool) -> None:
    recipes = evenly_batched() if by_feature else all_recipes()
    trainings = [[asdict(recipe), f"{prefix}-{name}"] for name, recipe in recipes.items()]
    path = folder / "trainings.json"
    path.write_text(json.dumps({"set": f"toy/{HOOK}", "by_feature": by_feature, "trainings": trainings}))
    torchrun(torchrun_trainings.main, path).finish()


@pytest.fixture(scope="module")
def rows_divided(alone, tmp_path_factory) -> Path:
    train_by_two(tmp_path_factory.mktemp("rows"), "rows", by_feature=False)
    return alone


@pytest.fixture(scope="module")
def features_divided(alone, tmp_path_factory) -> Path:
    train_by_two(tmp_path_factory.mktemp("features"), "features", by_feature=True)
    return alone


def assert_like(one: Path, other: Path, rtol: float = 2e-3, atol: float = 2e-4) -> None:
    """The same loss curve and the same weights, but for rounding."""
    ours, theirs = metrics(one), metrics(other)
    assert len(ours) == len(theirs) > 1 and list(ours[0]) == list(theirs[0])
    for line, wanted in zip(ours, theirs, strict=True):
        assert all(line[key] == wanted[key] for key in ("epoch", "step", "tokens", "lr", "best"))
        figures = [[float(row[key] or 0) for key in row if key != "best"] for row in (line, wanted)]
        np.testing.assert_allclose(*figures, rtol=rtol, atol=atol, err_msg=str(list(line)))
    ours, theirs = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert {name: array.shape for name, array in ours.items()} == {name: array.shape for name, array in theirs.items()}
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, atol=10 * atol, err_msg=name)
    assert json.loads((one / "cfg.json").read_text()) == json.loads((other / "cfg.json").read_text())
    names = [{path.name for path in folder.iterdir()} - {"figures"} for folder in (one, other)]
    assert names[0] == names[1]


@pytest.mark.parametrize("name", all_recipes())
def test_each_learns_from_its_rows(name, rows_divided):
    assert_like(rows_divided / "saes" / f"rows-{name}", rows_divided / "saes" / f"alone-{name}")


@pytest.mark.parametrize("name", evenly_batched())
def test_each_holds_its_features(name, features_divided):
    assert_like(features_divided / "saes" / f"features-{name}", features_divided / "saes" / f"alone-{name}")


def test_torchrun_starts_main_py(alone):
    """torchrun itself, and interpreters that it starts: an SAE as a single process makes it."""
    settings = ("--width", SHORT.width, "--k", SHORT.k, "--batch", SHORT.batch, "--epochs", SHORT.epochs)
    words = (
        "--standalone",
        "--nproc-per-node",
        2,
        "main.py",
        "train",
        "--set",
        f"toy/{HOOK}",
        "--name",
        "torchrun",
        "--no-index",
    )
    command = [sys.executable, "-m", "torch.distributed.run", *words, *settings, "--lr", SHORT.lr]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with processes.killed_at_the_end(
        subprocess.Popen([*map(str, command)], cwd=processes.ROOT, env=environment, **pipes)
    ) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and out.count("explained variance") == 1, err
    assert_like(alone / "saes/torchrun", alone / "saes/alone-topk")


def test_what_is_compared_is_worth_it(alone):
    """Dead features are revived, and a batch of one row is among them."""
    lines = {name: metrics(alone / "saes" / f"alone-{name}") for name in all_recipes()}
    for name in ("topk", "batchtopk", "matryoshka"):
        assert max(float(line["loss_aux"]) for line in lines[name]) > 0
    assert int(lines["topk"][-1]["tokens"]) == 2 * 900 and 900 % ONE_ROW_LEFT == 1
    worse = [name for name, found in lines.items() if not any(line["best"] == "True" for line in found[1:])]
    assert not worse, "each learns something"


# What ends processes, on the command line.


@pytest.fixture
def long_recipe(tmp_path) -> tuple[Path, TrainRecipe]:
    """A training of 60 steps that writes a checkpoint after each."""
    path = tmp_path / "long.toml"
    path.write_text(
        '[train]\narch = "batchtopk"\nwidth = 4\nk = 4\nbatch = 64\nepochs = 4\npatience = 60\n'
        "checkpoint_minutes = 1e-6\n"
    )
    settings = {"arch": "batchtopk", "width": 4, "k": 4, "batch": 64, "epochs": 4, "patience": 60}
    return path, TrainRecipe(**settings, checkpoint_minutes=1e-6)


def at_step(checkpoint: Path, step: int) -> bool:
    """Whether a checkpoint of this step, or a later one, has been written."""
    from lensae.sae.train import checkpoint as checkpoints

    return checkpoint.is_file() and checkpoints._read(checkpoint, tensors=False)[0]["state"]["step"] >= step


def test_killed_and_stopped_and_resumed(toy, long_recipe):
    """One process killed; then all stopped; then to the end."""
    path, recipe = long_recipe
    whole = train(recipe, f"toy/{HOOK}", "long-alone").sae.path
    checkpoint = toy / "saes/long/checkpoints/last.safetensors"
    command = ("train", "--set", f"toy/{HOOK}", "--recipe", path, "--name", "long", "--json")
    process = torchrun(processes.main, *command)
    process.until(lambda: at_step(checkpoint, 5))
    os.kill(process.rank_pid(1), signal.SIGKILL)
    out, err = process.finish(1)
    assert not out and "Traceback" not in err.split("torch/distributed")[0] and "unexpected" not in err, err
    process = torchrun(processes.main, *command)
    process.until(lambda: at_step(checkpoint, 20))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode and not out and "resuming at step" in err and "unexpected" not in err, err
    assert err.count("run the same command again to resume") == 1, err
    out, err = torchrun(processes.main, *command).finish()
    assert "resuming at step" in err and json.loads(out)["sae"] == "long"
    assert json.loads(out)["index"]["sae_name"] == "long" and err.count("indexing 64 features: 1,000/1,000") == 1, err
    assert_like(toy / "saes/long", whole, rtol=1e-2, atol=2e-3)


def test_divided_features_are_kept_whole(toy, long_recipe):
    """What several processes began a single one can finish, and the other way round."""
    path, recipe = long_recipe
    checkpoint = toy / "saes/wide/checkpoints/last.safetensors"
    command = ("train", "--set", f"toy/{HOOK}", "--recipe", path, "--name", "wide", "--shard-features")
    process = torchrun(processes.main, *command)
    process.until(lambda: at_step(checkpoint, 5))
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate()
    assert process.returncode and err.count("run the same command again to resume") == 1, err
    with pytest.raises(KeyboardInterrupt):
        train(recipe, f"toy/{HOOK}", "wide", Stops(10))
    out, err = torchrun(processes.main, *command).finish()
    assert "resuming at step" in err and "wide" in out
    whole = train(recipe, f"toy/{HOOK}", "wide-alone").sae.path
    assert_like(toy / "saes/wide", whole, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--k", "1000", "--width", "2"), "k = 1000 is more than the 32 features"),
        (("--set", "nope"), "no activation set"),
    ],
)
def test_one_of_them_says_what_is_wrong(arguments, said, toy):
    out, err = torchrun(processes.main, "train", "--set", f"toy/{HOOK}", *arguments, "--name", "wrong").finish(1)
    assert not out and err.count(said) == 1 and "unexpected" not in err, err
    assert not (toy / "saes/wrong").exists()


def test_what_one_of_them_finds_wrong_is_told(toy, tmp_path):
    """Rows that are not numbers, in the part of one of them."""
    import h5py

    from lensae.core.paths import read_set
    from lensae.store.reader import SetReader

    broken = write_set(toy.parents[1] / "broken" / HOOK, made(), dtype="float32", shard_rows=300)
    training = SetReader(read_set(broken)).split(0.1, 0).training.indices[0]
    with h5py.File(broken / "shards" / "00000.h5", "r+") as file:
        file["activations"][int(file["documents/start"][training[-1]]) + 3, 2] = np.nan
    _out, err = torchrun(processes.main, "train", "--set", f"broken/{HOOK}", "--batch", "64").finish(1)
    assert err.count("1 rows of") == 1 and "not finite, the first is row" in err and "unexpected" not in err, err


# The pieces.


@pytest.mark.parametrize(("count", "width"), [(5, 3), (1000, 7), (2500, 33), (4096, 16)])
def test_the_start_of_a_part_is_that_of_the_whole(count, width):
    torch.manual_seed(3)
    whole, after = torch.randn(count, width), torch.randn(5)
    for rank in range(3):
        own = ProcessGroup(rank, 3, by_feature=True).feature_range(count)
        torch.manual_seed(3)
        assert torch.equal(random_rows(count, width, own), whole[own])
        assert torch.equal(torch.randn(5), after)


def test_no_rows_at_all():
    """What a process does that has no part of a short batch."""
    none, W, b = torch.zeros(0, 6), torch.randn(20, 6, requires_grad=True), torch.zeros(20, requires_grad=True)
    for features in (
        kernels.encode_topk(none, torch.zeros(6), W, b, 3),
        kernels.encode_above(none, torch.zeros(6), W, b),
        kernels.encode_above(none, torch.zeros(6), W, b, density=1.0),
    ):
        assert features.shape == (0, 20) and features.count_F().tolist() == [0] * 20
        x_hat = kernels.decode(features, W, torch.zeros(6))
        (x_hat.sum() + features.value.sum()).backward()
        assert x_hat.shape == (0, 6) and not W.grad.any() and not b.grad.any()
