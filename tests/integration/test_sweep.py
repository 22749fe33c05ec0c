"""Sweeps: many SAEs on one pass over the rows."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_helpers import SMALL, Stops, broken_after, digest, metrics

from lensae.core.errors import UserError
from lensae.core.recipe import load_sweep, load_train
from lensae.stages.train.pareto import Point, choose_winner, mark_front
from lensae.stages.train.run import train
from lensae.stages.train.sweep import sweep

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert sorted(epochs) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    for recipe in SWEEP:
        alone = train(recipe).sae
        among = toy / "saes" / f"all-{alone.name}"
        assert digest(among) == digest(alone.path) and metrics(among) == metrics(alone.path)
    assert len({digest(toy / "saes" / point.name) for point in report.points}) == len(SWEEP)


def test_an_interrupted_sweep_goes_on(toy):
    recipes = SWEEP[:4]
    expected = {train(recipe, name=f"x-{n}").sae.training.recipe.arch: n for n, recipe in enumerate(recipes)}
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
    figures = {
        "l0": l0,
        "explained_variance_typical": ev,
        "explained_variance": 0.5,
        "mse": 0.1,
        "dead_share": 0.0,
        "seconds": 1.0,
    }
    return Point(name=f"{l0:g}", arch="topk", d_sae=8, recipe=SMALL, **figures)


def on_front_by_definition(points: list[Point]) -> set[str]:
    """No other has as little L0 and as much explained variance, one of them better."""
    return {
        p.name
        for p in points
        if not any(
            q.l0 <= p.l0
            and q.explained_variance_typical >= p.explained_variance_typical
            and (q.l0, q.explained_variance_typical) != (p.l0, p.explained_variance_typical)
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
        assert {p.name for p in mark_front(points) if p.front} == on_front_by_definition(points)
    chosen, rule = choose_winner(
        mark_front([point(8, 0.5), point(16, 0.75), point(32, 0.8), point(64, 0.82), point(20, 0.6)])
    )
    assert chosen.l0 == 16 and "bend" in rule
    chosen, rule = choose_winner(mark_front([point(32, 0.5), point(32.5, 0.6), point(33, 0.55)]))
    assert chosen.l0 == 32.5 and "much the same L0" in rule
    chosen, rule = choose_winner(mark_front([point(8, 0.5), point(64, 0.8)]))
    assert chosen.l0 == 64 and "no bend" in rule
    chosen, rule = choose_winner(mark_front([point(16, 0.664), point(32, 0.7115), point(64, 0.76)]))
    assert chosen.l0 == 64 and "no bend" in rule
    assert choose_winner([]) == (None, "")


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
