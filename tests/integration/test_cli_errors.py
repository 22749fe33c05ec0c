"""What goes wrong on the command line is said in one line, and nothing is lost by it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import shell

ROOT = Path(__file__).resolve().parents[2]

BAD_INPUT = [
    (["features", "top", 99999], "no feature 99999"),
    (["features", "top", -1], "-1"),
    (["features", "top", 1, "--k", 0], "--k cannot be 0"),
    (["features", "list", "--k", -5], "--k cannot be -5"),
    (["features", "list", "--sort", "size"], "sorted by 'size'"),
    (["features", "top", 1, "--sae", "nope"], "no SAE named 'nope'"),
    (["features", "top", 1, "--set", "nope"], "no activation set named 'nope'"),
    (["steer", "--feature", 99999], "no feature 99999"),
    (["steer", "--feature", 1, "--scale", "nan"], "--scale cannot be nan"),
    (["steer", "--feature", 1, "--scale", "inf"], "--scale cannot be inf"),
    (["steer", "--feature", 1, "--op", "clmp"], "no operation named 'clmp'"),
    (["steer", "--feature", 1, "--positions", "some"], "positions"),
    (["steer", "--feature", 1, "--prompt", " "], "empty prompt"),
    (["train", "--arch", "topkk"], "no architecture named 'topkk'"),
    (["train", "--k", 100000], "more than the"),
    (["train", "--width", "nan"], "width cannot be nan"),
    (["train", "--epochs", 1, "--tokens", 5], "give one of them"),
    (["collect", "--corpus", "nope"], "no corpus named 'nope'"),
    (["collect", "--dtype", "int8"], "dtype cannot be 'int8'"),
    (["collect", "--samples-per-prompt", 0], "cannot be 0"),
    (["collect", "--max-new-tokens", 0], "--no-generate"),
    (["collect", "--context", 1], "--context cannot be 1"),
    (["collect", "--max-tokens", 0], "--max-tokens cannot be 0"),
    (["collect", "--corpus", "themes", "--text-column", "body"], "'body'"),
    (["collect", "--temperature", -1], "temperature cannot be"),
    (["collect", "no/such/model"], "neither a model id"),
    (["corpus", "stats", "themse"], "themes"),
    (["store", "info", "nope"], "no activation set"),
    (["experiment", "nope.toml"], "cannot be read"),
    (["nonsense"], "nonsense"),
    (["train", "--epochs", "many"], "--epochs"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_INPUT, ids=lambda v: " ".join(map(str, v)) if type(v) is list else ""
)
def test_bad_input(arguments, message, lensae, use_trained):
    status, out, err = lensae(*arguments)
    assert status == 2, (out, err)
    assert message in " ".join(err.split()) and "Traceback" not in err and not out
    assert len(err.strip().splitlines()) <= 12


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "holds no text"),
        ("latin.txt", "caf\u00e9".encode("latin-1"), "line 1: byte 4 is not UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text"\n', "line 2 is not JSON"),
        ("nul.txt", b"a\0b\n", None),
    ],
)
def test_bad_corpora(name, data, message, lensae, store, tmp_path, model_dir):
    (tmp_path / name).write_bytes(data)
    status, _out, err = lensae("collect", model_dir("gpt2"), "--corpus", tmp_path / name, "--max-new-tokens", 2)
    if message is None:
        assert status == 0, err
    else:
        assert status == 2 and message in err and not list(store.rglob("*.h5"))


def test_bad_hook(lensae, store, model_dir):
    status, _out, err = lensae("collect", model_dir("gpt2"), "--hook", "blocks.5.hook_resid_pots")
    assert status == 2 and "blocks.5.hook_resid_post" in err
    assert not list(store.rglob("manifest.json"))


def test_an_sae_of_another_model(lensae, store, model_dir):
    for family in ("llama", "gpt2"):
        lensae("collect", model_dir(family), "--corpus", "probes", "--max-new-tokens", 6)
    lensae("train", "--set", "tiny-llama", "--epochs", 1, "--name", "of-llama")
    sae = store / "tiny-llama/blocks.4.hook_resid_post/saes/of-llama"
    for command in (["index"], ["evaluate"]):
        status, _out, err = lensae(*command, "--set", "tiny-gpt2", "--sae", sae)
        assert status == 2 and "another model" in err, err


def test_a_model_that_has_changed(lensae, store, model_dir, tmp_path):
    from safetensors.numpy import load_file, save_file

    copy = tmp_path / "changing"
    shutil.copytree(model_dir("llama"), copy)
    lensae("collect", copy, "--corpus", "probes", "--max-new-tokens", 6)
    lensae("train", "--epochs", 1)
    weights = load_file(copy / "model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, copy / "model.safetensors", metadata={"format": "pt"})
    status, _out, err = lensae("evaluate")
    assert status == 1 and "have changed" in err
    status, _out, err = lensae("collect", copy, "--corpus", "probes", "--max-new-tokens", 7)
    assert status == 2 and "--name" in err


def test_a_truncated_shard(lensae, trained_copy):
    shard = next(trained_copy.rglob("shards/00000.h5"))
    shard.write_bytes(shard.read_bytes()[:5000])
    for command in (["train"], ["features", "top", 1], ["evaluate"]):
        status, _out, err = lensae(*command)
        assert status == 1 and "00000.h5" in err and "store verify" in err, err
    status, out, _err = lensae("store", "verify")
    assert status == 1 and "00000.h5" in out


@pytest.mark.parametrize("mode", [["--max-new-tokens", 9, "--batch-size", 3], ["--no-generate", "--context", 30]])
def test_repair_collects_exactly_the_damaged_shards_again(mode, lensae, store, model_dir):
    arguments = ["collect", model_dir("llama"), "--corpus", "probes", "--samples-per-prompt", 3, "--shard-rows", 90]
    assert lensae(*arguments, *mode)[0] == 0
    folder = next(store.glob("tiny-llama/*/shards"))
    good = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert len(good) > 3
    damaged = bytearray(good["00001.h5"])
    damaged[len(damaged) // 2] ^= 1
    (folder / "00001.h5").write_bytes(damaged)
    (folder / "00002.h5").unlink()
    assert lensae("store", "verify")[0] == 1
    status, out, err = lensae("store", "repair", "--json")
    assert status == 0, err
    found = json.loads(out)["repaired"]
    assert [(shard["shard"], shard["same"]) for shard in found] == [("00001.h5", True), ("00002.h5", True)]
    assert {path.name: path.read_bytes() for path in folder.glob("*.h5")} == good
    assert (folder / "00001.h5.bad").read_bytes() == damaged
    assert lensae("store", "verify")[0] == 0
    assert "nothing to repair" in lensae("store", "repair")[1]


def test_repair_needs_the_same_text(lensae, store, model_dir, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one tram\n\ntwo trams\n")
    assert lensae("collect", model_dir("llama"), "--corpus", path, "--max-new-tokens", 4)[0] == 0
    next(store.rglob("00000.h5")).unlink()
    path.write_text("one tram\n\nthree trams\n")
    status, _out, err = lensae("store", "repair")
    assert status == 2 and "is not the text" in err


def test_a_full_disk_during_collect(lensae, store, model_dir, monkeypatch):
    real = os.fsync

    def full(descriptor: int) -> None:
        if "shards" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    arguments = ["collect", model_dir("llama"), "--corpus", "probes", "--max-new-tokens", 6]
    status, _out, err = lensae(*arguments)
    assert status == 1 and "disk is full" in err and "same command" in err
    assert not list(store.rglob("shards/*"))
    monkeypatch.setattr(os, "fsync", real)
    assert lensae(*arguments)[0] == 0 and lensae("store", "verify")[0] == 0


def test_activations_that_do_not_fit_float16(lensae, store, tmp_path, model_dir):
    from safetensors.numpy import load_file, save_file

    big = tmp_path / "big"
    shutil.copytree(model_dir("llama"), big)
    weights = load_file(big / "model.safetensors")
    name = "model.layers.2.mlp.down_proj.weight"
    save_file({**weights, name: weights[name] * 1e6}, big / "model.safetensors", metadata={"format": "pt"})
    arguments = ["collect", big, "--corpus", "probes", "--max-new-tokens", 4, "--hook", "blocks.4.hook_resid_post"]
    status, _out, err = lensae(*arguments)
    assert status == 1 and "blocks.4.hook_resid_post" in err and "--dtype float32" in err
    assert lensae(*arguments, "--dtype", "float32", "--name", "wide")[0] == 0
    status, out, _err = lensae(*arguments, "--skip-bad", "--name", "less", "--json")
    found = json.loads(out)
    assert status == 0 and found["dropped"] > 0
    assert found["rows"] + found["dropped"] == json.loads(lensae("store", "info", "wide", "--json")[1])["rows"]


def test_a_read_only_store(model_dir, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "store").mkdir(mode=0o500)
    done = shell("collect", model_dir("llama"), "--corpus", "probes", LENSAE_STORE=tmp_path / "store")
    assert done.returncode == 1 and "no permission" in done.stderr


def test_a_store_that_is_a_file(lensae, model_dir, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LENSAE_STORE", str(tmp_path / "file"))
    status, _out, err = lensae("collect", model_dir("llama"), "--corpus", "probes")
    assert status == 1 and "Traceback" not in err


def test_a_closed_pipe_is_no_error(use_trained):
    done = subprocess.run(
        f"{sys.executable} main.py features list --json | head -1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.stdout == "[\n" and "Error" not in done.stderr


def test_debug_shows_where(lensae, store):
    done = shell("--debug", "train", LENSAE_STORE=store)
    assert "Traceback" in done.stderr


def test_a_device_that_the_machine_does_not_have(lensae, model_dir, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _out, err = lensae("collect", model_dir("gpt2"), "--device", "cuda")
    assert status == 2 and "the device cuda is not available" in err and "this machine has" in err
