"""The commands as a person types them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    [],
    ["collect"],
    ["train"],
    ["evaluate"],
    ["index"],
    ["features"],
    ["features", "top"],
    ["features", "list"],
    ["features", "show"],
    ["steer"],
    ["corpus", "stats"],
    ["store"],
    ["store", "list"],
    ["store", "info"],
    ["store", "verify"],
    ["store", "repair"],
    ["store", "view"],
    ["store", "export"],
    ["store", "remove"],
    ["survey"],
    ["experiment"],
    ["doctor"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command, lensae):
    status, out, _err = lensae(*command, "--help")
    assert status == 0 and "Usage" in out
    if command and command not in (["features"], ["store"]):
        assert "Examples" in out


def test_every_row_is_its_token(lensae, store, model_dir):
    """What collect stores is, row for row, what the plain model computes on the text that the row maps to."""
    from lensae import model as models
    from lensae.core.paths import find_set
    from lensae.model.read import read
    from lensae.store.reader import SetReader

    hooks = [f"blocks.{n}.hook_resid_post" for n in (0, 7)]
    arguments = ["collect", model_dir("qwen2"), "--corpus", "probes", "--max-new-tokens", 9, "--batch-size", 3]
    arguments += ["--samples-per-prompt", 2, "--dtype", "float32", "--hook", hooks[0], "--hook", hooks[1]]
    status, _out, err = lensae(*arguments)
    assert status == 0, err
    model = models.load(models.resolve(str(model_dir("qwen2"))), hooks)
    for hook in hooks:
        reader = SetReader(find_set(f"tiny-qwen2/{hook}"))
        chosen = reader.everything()
        assert chosen.documents == 14
        for document, rows in zip(reader.documents(chosen), reader.document_rows(chosen), strict=True):
            expected = read(model, [document.input_ids.tolist()], [hook])[0].activations[hook]
            with reader.shard(document.shard) as shard:
                spans = [shard.span(row) for row in range(*document.rows)]
            assert document.text.startswith(document.prompt)
            pieces = dict.fromkeys((s.start, s.end) for s in spans)  # tokens of one character share its span
            assert "".join(document.text[start:end] for start, end in pieces) == document.text
            for span, row in zip(spans, rows, strict=True):
                assert document.input_ids[span.position] == span.token_id
                assert span.origin == int(span.start >= len(document.prompt))
                np.testing.assert_allclose(row, expected[span.position], rtol=1e-3, atol=1e-3)


def collect_small_shards(*arguments: str) -> None:
    """`python main.py collect` with shards of 64 KiB."""
    import lensae.store.writer

    lensae.store.writer.SHARD_BYTES = 64 * 2**10
    processes.main("collect", *arguments)


def test_collect_resumes_after_a_kill(model_dir, tmp_path):
    """SIGKILL in the middle, then the same command: the shards of an uninterrupted run, byte for byte."""
    arguments = [str(model_dir("llama")), "--max-new-tokens", "40", "--batch-size", "5", "--json"]

    def start(folder: Path) -> processes.Command:
        return processes.Command(collect_small_shards, *arguments, environment={"LENSAE_STORE": folder})

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start(whole).finish()
    process = start(cut)
    process.until(lambda: len(list(cut.glob("*/*/shards/*.h5"))) >= 2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = len(list(cut.glob("*/*/shards/*.h5")))
    out, _err = start(cut).finish()
    shards = [{path.name: path.read_bytes() for path in folder.glob("*/*/shards/*.h5")} for folder in (cut, whole)]
    assert shards[0] == shards[1] and 2 <= left < len(shards[1])
    assert json.loads(out)["documents"] == 100


def test_ctrl_c_says_what_is_kept(model_dir, tmp_path):
    """In an interpreter that was started for the command, as a person's is."""
    process = subprocess.Popen(
        [sys.executable, "main.py", "collect", str(model_dir("llama")), "--samples-per-prompt", "40"],
        cwd=ROOT,
        env={**os.environ, "LENSAE_STORE": str(tmp_path)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with processes.killed_at_the_end(process):
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/*/manifest.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "same command" in err and "Traceback" not in err


def test_chat_prompts_are_stored_with_their_template(lensae, store, tmp_path, model_dir):
    from lensae.core.paths import find_set
    from lensae.store.reader import SetReader

    chatty = tmp_path / "chatty"
    shutil.copytree(model_dir("llama"), chatty)
    template = "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}bot:"
    (chatty / "chat_template.jinja").write_text(template)
    arguments = ["collect", chatty, "--corpus", "transport", "--max-new-tokens", 3, "--chat"]
    status, _out, err = lensae(*arguments)
    assert status == 0, err
    reader = SetReader(find_set())
    document = next(reader.documents(reader.everything()))
    assert document.prompt.startswith("user: Here is the first sentence of a story.")
    assert document.prompt.endswith("<|end|>bot:") and document.text.startswith(document.prompt)
    assert document.label == "bicycle"
    with reader.shard(0) as shard:
        assert not set(shard.read("token_id").tolist()) & {0, 1}, "special tokens are not stored"


def test_reading_plain_text(lensae, store, model_dir, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("The tram was late again and nobody minded. " * 60 + "\n\nA short one.\n")
    status, out, err = lensae("collect", model_dir("gpt2"), "--corpus", path, "--no-generate", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["generated_rows"] == 0 and found["documents"] > 2, "the long text is cut to the context"
    assert lensae("train", "--epochs", 1, "--width", 1)[0] == 0


def test_a_pattern_of_hooks_makes_a_set_each_in_one_pass(lensae, store, model_dir):
    arguments = ["collect", model_dir("gpt2"), "--corpus", "probes", "--max-new-tokens", 4]
    status, out, err = lensae(*arguments, "--hook", "blocks.*.hook_resid_post", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["hooks"] == [f"blocks.{n}.hook_resid_post" for n in range(8)]
    assert len(list(store.glob("tiny-gpt2/*/manifest.json"))) == 8
    status, out, _err = lensae(*arguments, "--hook", "blocks.[12].mlp.hook_post", "--name", "inside", "--json")
    assert status == 0 and json.loads(out)["hooks"] == ["blocks.1.mlp.hook_post", "blocks.2.mlp.hook_post"]
    assert json.loads(lensae("store", "info", "inside/blocks.2.mlp.hook_post", "--json")[1])["width"] == 4 * 64
    assert lensae(*arguments, "--hook", "blocks.*.hook_nothing")[0] == 2


def test_bounds_on_a_pass(lensae, store, model_dir, tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("body\n" + "The tram was late again and nobody minded. " * 200 + "\nshort\n")
    reading = ["collect", model_dir("gpt2"), "--corpus", path, "--text-column", "body", "--no-generate", "--json"]
    everything = json.loads(lensae(*reading, "--context", 50, "--name", "a")[1])
    some = json.loads(lensae(*reading, "--context", 50, "--max-tokens", 500, "--name", "b")[1])
    assert 400 < some["rows"] <= 500 < everything["rows"]
    from lensae.core.paths import find_set
    from lensae.store.reader import SetReader

    reader = SetReader(find_set("a/blocks.4.hook_resid_post"))
    lengths = [len(d.input_ids) for d in reader.documents(reader.everything())]
    assert max(lengths) == 50
    status, out, _err = lensae("collect", model_dir("gpt2"), "--max-tokens", 300, "--max-new-tokens", 20, "--json")
    assert status == 0 and 0 < json.loads(out)["rows"] <= 300


def test_a_pass_that_plainly_has_no_room(lensae, store, model_dir, monkeypatch):
    usage = shutil.disk_usage(ROOT)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    status, _out, err = lensae("collect", model_dir("gpt2"), "--corpus", "probes")
    assert status == 1 and "MiB are free" in err and not list(store.rglob("*.h5"))


def test_room_is_asked_for_what_is_left_only(lensae, store, model_dir, monkeypatch):
    """A pass that filled the disk goes on when there is room for the rest of it."""
    import lensae.stages.collect.run as stage

    finish = stage.SetWriter.finish
    monkeypatch.setattr(stage.SetWriter, "finish", lambda self, started: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ["collect", model_dir("gpt2"), "--corpus", "probes", "--max-new-tokens", 20, "--shard-rows", 60]
    assert lensae(*arguments)[0] == 130
    whole = sum(path.stat().st_size for path in store.rglob("*.h5"))
    assert whole > 50_000
    monkeypatch.setattr(stage.SetWriter, "finish", finish)
    usage = shutil.disk_usage(ROOT)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=whole))
    status, _out, err = lensae(*arguments)
    assert status == 0, err
    status, _out, err = lensae(*arguments, "--seed", 1, "--samples-per-prompt", 3)
    assert status == 1 and "MiB are free" in err


def test_looking_features_up(lensae, use_trained):
    status, out, _err = lensae("features", "list", "--sort", "max", "--k", 3, "--json")
    ranked = json.loads(out)
    assert status == 0 and len(ranked) == 3 and ranked[0]["max"] >= ranked[1]["max"]
    feature = ranked[0]["feature"]
    top = json.loads(lensae("features", "top", feature, "--k", 6, "--json")[1])
    assert top["max"] == pytest.approx(ranked[0]["max"])
    values = [e["value"] for e in top["examples"]]
    assert values == sorted(values, reverse=True) and values[0] == pytest.approx(top["max"])
    contexts = {(e["before"], e["token"], e["position"]) for e in top["examples"]}
    assert len(contexts) == len(top["examples"]), "a context is shown once"
    text = lensae("features", "top", feature, "--k", 6)[1]
    assert text.count("«") == 7, "the heading and six examples"
    show = json.loads(lensae("features", "show", feature, "--json")[1])
    assert sum(show["histogram"]) == show["count"]
    fires = sum(token["fires"] for token in show["tokens"])
    assert fires == show["count"] if len(show["tokens"]) < 10 else 10 <= fires <= show["count"]
    assert all(0 < t["fires"] <= t["occurs"] for t in show["tokens"])
    labels = json.loads(lensae("features", "list", "--sort", "label", "--k", 4, "--json")[1])
    assert all(0.5 <= score["auroc"] <= 1 for score in labels)


def test_examples_hold_what_the_sae_computes(use_trained):
    """Feature -> row -> activation: encode the stored row again with the saved weights."""
    import torch

    from lensae.sae.formats.saelens import load
    from lensae.stages import features as lookup

    opened = lookup.open_lookup()
    sae = load(opened.sae.path)
    for stats in opened.index.ranked("density", 5):
        for example in lookup.top(opened, stats.feature, 5):
            with opened.reader.shard(example.shard) as shard:
                row = torch.from_numpy(shard.read("activations", example.row).astype(np.float32))
            assert float(sae.encode(row[None])[0, stats.feature]) == pytest.approx(example.value, rel=1e-3, abs=1e-3)


def test_evaluation(lensae, trained_copy):
    status, out, err = lensae("evaluate", "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["reconstruction"]["l0"] <= 8 and report["reconstruction"]["explained_variance"] < 1
    loss = report["loss"]
    expected = (loss["ce_zero"] - loss["ce_sae"]) / (loss["ce_zero"] - loss["ce_clean"])
    assert loss["ce_recovered"] == pytest.approx(expected)
    assert loss["kl_sae"] > 0 and loss["tokens"] > 100
    for picture in report["figures"]:
        assert Path(picture).read_bytes().startswith(b"\x89PNG") and Path(picture).stat().st_size > 5_000


def test_training_again_replaces_nothing(lensae, store, model_dir):
    lensae("collect", model_dir("llama"), "--corpus", "probes", "--max-new-tokens", 8)
    names = [json.loads(lensae("train", "--epochs", 1, "--width", 1, "--json")[1])["sae"] for _ in range(2)]
    assert names == ["topk-64-k32", "topk-64-k32-2"]
    status, _out, err = lensae("train", "--name", names[0])
    assert status == 2 and "already an SAE" in err
    status, out, _err = lensae("train", "--arch", "tied-l1", "--width", 2, "--epochs", 2, "--json")
    found = json.loads(out)
    assert status == 0 and found["sae"] == "tied-l1-128-l1-0.1"
    metrics = (Path(found["path"]) / "metrics.csv").read_text().splitlines()
    assert len(metrics) == 11 and "explained_variance" in metrics[0] and "loss_l1" in metrics[0]
    assert not list(store.rglob("*.partial"))


def test_the_store_commands(lensae, use_trained):
    assert "tiny-llama" in lensae("store", "list")[1]
    listed = json.loads(lensae("store", "list", "--json")[1])
    assert listed[0]["rows"] > 1000 and listed[0]["saes"]
    details = json.loads(lensae("store", "info", "--json")[1])
    assert details["passes"][0]["spec"]["corpus"] == "themes" and details["weights_sha256"]
    assert lensae("store", "info")[0] == 0
    assert lensae("store", "verify")[0] == 0
    assert (use_trained / details["name"] / "view.h5").is_file()
    status, out, _err = lensae("doctor", "--json")
    assert status == 0 and {"torch", "embedded model", "disk"} <= {fact["name"] for fact in json.loads(out)}


def test_an_empty_store(lensae, store):
    assert lensae("store", "list")[1].startswith("nothing in")
    for command in (["train"], ["features", "top", 1], ["evaluate"], ["index"], ["steer", "--feature", 1]):
        status, _out, err = lensae(*command)
        assert status == 2 and "main.py collect" in err, command
