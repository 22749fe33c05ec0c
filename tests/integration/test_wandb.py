"""Weights & Biases by option, against a stand-in for the package that notes what it is told."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import HOOK, documents, shell, write_set
from training_helpers import Stops

from lensae.core.recipe import TrainRecipe
from lensae.stages.train.run import train
from lensae.stages.train.watcher import Watcher

OPTIONS = ("train", "--width", 2, "--k", 4, "--batch", 64, "--epochs", 4)
SMALL = TrainRecipe(width=2, k=4, batch=64, epochs=4)
STAND_IN = """
runs, steps, fails = [], {}, ""

class Run:
    def __init__(self, options):
        self.options, self.step, self.lines, self.ended = options, steps.get(options["id"], 0), [], None

    def log(self, values, step):
        if fails == "log":
            raise ConnectionError("nobody answers")
        self.lines.append({"tokens": step, **values})
        self.step = steps[self.options["id"]] = step + 1

    def finish(self, exit_code):
        if fails == "finish":
            raise ConnectionError("nobody answers")
        self.ended = exit_code

def init(**options):
    if fails == "init":
        raise ValueError("no API key")
    runs.append(Run(options))
    return runs[-1]
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def toy(store) -> Path:
    return write_set(store / "toy" / HOOK, documents(40), dtype="float32")


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The stand-in as the package."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    import wandb

    yield wandb
    sys.modules.pop("wandb", None)


def metrics(sae: Path) -> list[dict]:
    """metrics.csv as Weights & Biases is told it."""
    with open(sae / "metrics.csv", newline="") as file:
        rows = [
            {key.replace("loss_", "loss/", key.startswith("loss_")): v for key, v in row.items()}
            for row in csv.DictReader(file)
        ]
    return [{key: float(v) for key, v in row.items() if key not in ("step", "best")} for row in rows]


def test_the_lines_of_metrics_csv_are_logged(lensae, toy, wandb):
    status, out, err = lensae(*OPTIONS, "--wandb", "--json")
    assert status == 0, err
    found, [run] = json.loads(out), wandb.runs
    assert run.lines == metrics(Path(found["path"])) and len(run.lines) >= 4
    options = run.options
    assert (options["project"], options["name"], options["resume"]) == ("lensae", "topk-32-k4", "allow")
    assert options["config"]["recipe"]["k"] == 4 and options["config"]["plan"]["d_sae"] == 32
    assert options["config"]["set"] == f"toy/{HOOK}" and Path(options["dir"]) == Path(found["path"])
    assert run.ended == 0
    assert json.loads((Path(found["path"]) / "wandb.json").read_text())["id"] == options["id"]


def test_the_real_package_keeps_the_lines_offline(toy, store):
    """In an interpreter of its own: what is logged is in the file that `wandb sync` would send."""
    done = shell(*OPTIONS, "--wandb", "--json", WANDB_MODE="offline", WANDB_SILENT="true", LENSAE_STORE=store)
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["path"])
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    data = file.read_bytes()
    assert data.count(b"loss/mse") >= len(metrics(folder)) >= 4 and b"topk-32-k4" in data


def test_without_the_option_nothing_is(lensae, toy, wandb):
    assert lensae(*OPTIONS)[0] == 0
    assert not wandb.runs and not list(toy.glob("saes/*/wandb*"))


def test_a_training_that_goes_on_goes_on_in_its_run(toy, wandb):
    from lensae.stages.train.wandb import WandbWatcher

    with pytest.raises(KeyboardInterrupt), WandbWatcher(Stops(12), print) as watcher:
        train(SMALL, name="parts", watcher=watcher)
    with WandbWatcher(Watcher(), print) as watcher:
        folder = train(SMALL, name="parts", watcher=watcher).sae.path
    first, second = wandb.runs
    assert first.options["id"] == second.options["id"] and (first.ended, second.ended) == (1, 0)
    assert first.lines and second.lines
    told = [{key: v for key, v in line.items() if key != "seconds"} for line in first.lines + second.lines]
    assert told == [{key: v for key, v in line.items() if key != "seconds"} for line in metrics(folder)]


def test_a_run_that_begins_late_is_told_the_history(toy, wandb):
    from lensae.stages.train.wandb import WandbWatcher

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, name="parts", watcher=Stops(12))
    with WandbWatcher(Watcher(), print) as watcher:
        folder = train(SMALL, name="parts", watcher=watcher).sae.path
    assert wandb.runs[0].lines == metrics(folder)


def test_a_sweep_has_a_run_for_each(lensae, toy, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    status, _out, err = lensae(*OPTIONS, "--k", 2, "--wandb")
    assert status == 0, err
    assert {run.options["name"] for run in wandb.runs} == {"topk-32-k4", "topk-32-k2"}
    assert len({run.options["id"] for run in wandb.runs}) == 2
    for run in wandb.runs:
        assert run.lines == metrics(Path(run.options["dir"]))
        assert (run.options["project"], run.options["reinit"]) == ("mine", "create_new")


@pytest.mark.parametrize("what", ["log", "finish"])
def test_its_failure_does_not_end_the_training(what, lensae, toy, wandb):
    wandb.fails = what
    status, out, err = lensae(*OPTIONS, "--wandb", "--json")
    assert status == 0 and json.loads(out)["sae"] == "topk-32-k4"
    assert err.count("Weights & Biases failed (nobody answers)") == 1


def test_a_run_that_cannot_begin(lensae, toy, wandb):
    wandb.fails = "init"
    status, _out, err = lensae(*OPTIONS, "--wandb")
    assert status == 1 and "no API key" in err and "WANDB_MODE=offline" in err
    assert not list(toy.glob("saes/*"))


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)], ids=["nothing", "a folder of runs"])
def test_without_the_package(found, lensae, toy, monkeypatch):
    spec_of = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: found if name == "wandb" else spec_of(name, *more)
    )
    status, _out, err = lensae(*OPTIONS, "--wandb")
    assert status == 2 and "wandb is not installed" in err and "pip install 'lensae[wandb]'" in err


def test_other_processes_of_the_training_have_no_runs(wandb, monkeypatch):
    from lensae.stages.train.wandb import WandbWatcher

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with WandbWatcher(Watcher(), print) as watcher:
        watcher.started(None, [object()])
        watcher.measured(SimpleNamespace(name="topk"), None)
    assert not wandb.runs
