"""Collecting: packed, in fewer bits, steered, short of memory, and by several processes at once."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import processes
import pytest

from lensae.core.paths import SetEntry, find_set, read_set
from lensae.store.reader import SetReader
from lensae.store.verify import verify

ROOT = Path(__file__).resolve().parents[2]
HOOK = "blocks.4.hook_resid_post"


def rows_by_text(entry: SetEntry) -> dict[str, np.ndarray]:
    """Text (with a number where it occurs again) -> its rows."""
    reader, found = SetReader(entry), {}
    chosen = reader.everything()
    for document, rows in zip(reader.documents(chosen), reader.document_rows(chosen), strict=True):
        copies = sum(1 for name in found if name.startswith(document.text + "\0"))
        found[f"{document.text}\0{copies}"] = rows
    return found


def assert_same_rows(one: SetEntry, other: SetEntry, tolerance: float = 2e-3) -> None:
    a, b = rows_by_text(one), rows_by_text(other)
    assert a.keys() == b.keys()
    for text, rows in a.items():
        np.testing.assert_allclose(rows, b[text], rtol=tolerance, atol=tolerance)


def texts(path: Path, count: int = 60) -> Path:
    """Lines of different lengths, each with a label."""
    lines = [
        {
            "text": f"Line {n}: " + "the tram was late again and nobody minded. " * (1 + n % 7),
            "label": "ab"[n // 30 % 2],
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# --- packing -------------------------------------------------------------------------------------------------------


def test_joined_texts_fill_every_context(lensae, store, model_dir, tmp_path):
    corpus = texts(tmp_path / "a.jsonl")
    reading = ["collect", model_dir("llama"), "--corpus", corpus, "--no-generate", "--context", 64, "--json"]
    apart = json.loads(lensae(*reading, "--name", "apart")[1])
    status, out, err = lensae(*reading, "--join", "--name", "joined")
    assert status == 0, err
    joined = json.loads(out)
    assert joined["rows"] == apart["rows"] and joined["documents"] < apart["documents"]
    reader = SetReader(find_set("joined"))
    found = list(reader.documents(reader.everything()))
    assert sorted({len(d.input_ids) for d in found})[-1] == 64 and sum(len(d.input_ids) < 64 for d in found) <= 1
    assert {d.label for d in found} == {"a", "b", ""}
    both = next(d for d in found if "Line 1:" in d.text)
    assert "Line 0:" in both.text, "documents share a context"
    assert lensae("collect", model_dir("llama"), "--join")[0] == 2


def test_a_set_may_hold_what_was_read_and_what_was_written(lensae, store, model_dir, tmp_path):
    corpus = texts(tmp_path / "a.jsonl")
    assert lensae("collect", model_dir("llama"), "--corpus", corpus, "--no-generate")[0] == 0
    assert lensae("collect", model_dir("llama"), "--corpus", "probes", "--max-new-tokens", 8)[0] == 0
    info = json.loads(lensae("store", "info", "--json")[1])
    assert len(info["passes"]) == 2
    reader = SetReader(find_set())
    prompts = {bool(d.prompt) for d in reader.documents(reader.everything())}
    assert prompts == {True, False}
    assert lensae("train", "--epochs", 1, "--width", 1)[0] == 0 and lensae("index")[0] == 0
    assert lensae("features", "list", "--json")[0] == 0


# --- fewer bits ----------------------------------------------------------------------------------------------------


def test_the_error_of_bfloat16_is_measured(lensae, store, model_dir, tmp_path):
    corpus = texts(tmp_path / "a.jsonl")
    reading = ["collect", model_dir("llama"), "--corpus", corpus, "--no-generate", "--dtype", "float32"]
    assert lensae(*reading, "--name", "exact")[0] == 0
    status, _out, err = lensae(*reading, "--compute-dtype", "bfloat16", "--name", "short")
    assert status == 0 and "bfloat16: relative error" in err
    (made,) = find_set("short").manifest.passes
    a, b = rows_by_text(find_set("exact")), rows_by_text(find_set("short"))
    difference = sum(float(np.square(a[text] - b[text]).sum()) for text in a)
    error = (difference / sum(float(np.square(rows).sum()) for rows in a.values())) ** 0.5
    assert 1e-4 < error < 0.1 and 0.3 < made.relative_error / error < 3
    assert made.spec["compute_dtype"] == "bfloat16"
    assert lensae(*reading, "--compute-dtype", "float8")[0] == 2


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [["--max-new-tokens", 6], ["--no-generate", "--context", 40]])
def test_batches_are_halved_until_they_fit(mode, lensae, store, model_dir, monkeypatch):
    import torch

    from lensae.model.language_model import LanguageModel

    arguments = ["collect", model_dir("llama"), "--corpus", "probes", "--dtype", "float32", *mode]
    assert lensae(*arguments, "--name", "plain")[0] == 0
    run, sizes = LanguageModel.run, []

    def short_of_memory(self, input_ids, *args, **kwargs):
        sizes.append(input_ids.numel())
        if input_ids.numel() > 150 and input_ids.shape != (1, 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return run(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(LanguageModel, "run", short_of_memory)
    status, _out, err = lensae(*arguments, "--name", "halved")
    assert status == 0 and max(sizes) > 150, err
    assert_same_rows(find_set("plain"), find_set("halved"))


def test_one_document_that_does_not_fit(lensae, store, model_dir, monkeypatch):
    from lensae.model import read

    def never(*_args, **_inputs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(read, "ready", lambda model: None)
    monkeypatch.setattr(read, "_pass", never)
    status, _out, err = lensae("collect", model_dir("llama"), "--corpus", "probes", "--no-generate")
    assert status == 1 and "no memory for one document" in err


def collect_twice(model: str, corpus: str, *tokens: str) -> None:
    """Collect at every block, once for each number of tokens."""
    for count in tokens:
        options = ["--hook", "blocks.*.hook_resid_post", "--dtype", "float32", "--shard-rows", "4096", "--lines"]
        reading = ["--corpus", corpus, "--no-generate", "--max-tokens", count, "--name", f"tokens-{count}"]
        with contextlib.suppress(SystemExit):
            processes.main("collect", model, *reading, *options, "--json")


def test_memory_does_not_grow_with_the_pass(model_dir, tmp_path):
    """Three times the tokens at eight hooks, after a first pass; what would be kept of the rest is 160 MB."""
    path = tmp_path / "long.txt"
    path.write_text("".join(f"{n} trams were late again and nobody minded.\n" for n in range(12_000)))
    arguments = [str(model_dir("llama")), str(path), "40000", "120000"]
    process = processes.Command(collect_twice, *arguments, environment={"LENSAE_STORE": tmp_path / "store"})
    out, _err = process.finish()
    short, long = (json.loads(report)["peak_memory"] for report in re.split(r"(?<=\n\})\n", out.strip()))
    assert long < short + 60e6


# --- steering ------------------------------------------------------------------------------------------------------


def loud_feature() -> int:
    from lensae.stages.features import open_lookup

    return int(np.argmax(open_lookup().index.table()["max"]))


def test_the_edited_stream_is_stored(lensae, trained_copy, model_dir):
    import torch

    from lensae import model as models
    from lensae.model.read import read
    from lensae.sae.formats.saelens import load
    from lensae.stages.features import open_lookup
    from lensae.steering.edits import FeatureEdit

    feature = loud_feature()
    arguments = ["collect", model_dir("llama"), "--corpus", "probes", "--dtype", "float32", "--shard-rows", 60]
    status, out, err = lensae(*arguments, "--max-new-tokens", 6, "--steer", f"{feature}:2", "--json")
    assert status == 0, err
    assert json.loads(out)["hooks"] == [HOOK] and f"steered-{feature}-clamp-2" in json.loads(out)["paths"][0]
    entry = read_set(Path(json.loads(out)["paths"][0]))
    lookup = open_lookup()
    maximum = lookup.index.stats(feature).max
    sae = load(lookup.sae.path)
    model = models.load(models.resolve(str(model_dir("llama"))), [HOOK])
    edit = FeatureEdit(HOOK, sae, feature, 2 * maximum)
    reader = SetReader(entry)
    chosen = reader.everything()
    for document, rows in zip(reader.documents(chosen), reader.document_rows(chosen), strict=True):
        again = read(model, [document.input_ids.tolist()], [HOOK], [edit])[0].activations[HOOK]
        keep = ~np.isin(document.input_ids, sorted(model.text.special_ids))
        np.testing.assert_allclose(rows, again[keep], rtol=2e-3, atol=2e-3)
    plain = read(model, [document.input_ids.tolist()], [HOOK])[0].activations[HOOK]
    assert not torch.allclose(torch.from_numpy(plain[keep]), torch.from_numpy(rows), atol=1e-2)
    first = sorted((entry.path / "shards").iterdir())[0]
    before = first.read_bytes()
    first.unlink()
    assert lensae("store", "repair", f"{entry.name}")[0] == 0
    assert first.read_bytes() == before


@pytest.mark.parametrize(
    ("steer", "message"),
    [
        (["--steer", "loud"], "FEATURE[:SCALE"),
        (["--steer", "1:2:3:4"], "FEATURE[:SCALE"),
        (["--steer", "1:nan"], "FEATURE[:SCALE"),
        (["--steer", "1:2:squash"], "squash"),
        (["--steer", "99999"], "99999"),
        (["--steer", "1", "--sae", "none"], "none"),
        (["--sae", "topk-512-k8"], "--steer"),
    ],
)
def test_steering_that_cannot_be(steer, message, lensae, trained_copy, model_dir):
    status, _out, err = lensae("collect", model_dir("llama"), "--corpus", "probes", *steer)
    assert status == 2 and message in err, err


def test_an_sae_of_another_model_steers_nothing(lensae, trained_copy, model_dir):
    status, _out, err = lensae("collect", model_dir("gpt2"), "--corpus", "probes", "--steer", "1")
    assert status == 2 and "was trained on" in err


# --- several processes ---------------------------------------------------------------------------------------------

SHARED = ["--corpus", "probes", "--samples-per-prompt", "4", "--max-new-tokens", "12", "--batch-size", "4"]


def start_two(store: Path, model: Path, *more: str) -> processes.Command:
    arguments = ["collect", model, *SHARED, "--shard-rows", "60", *more]
    return processes.torchrun(processes.main, *arguments, LENSAE_STORE=store)


@pytest.fixture(scope="module")
def by_two_processes(model_dir, tmp_path_factory) -> tuple[Path, dict]:
    """A store with a set that two processes collected, and what they reported."""
    store = tmp_path_factory.mktemp("two") / "store"
    out, _err = start_two(store, model_dir("llama"), "--json").finish()
    return store, json.loads(out)  # one report, not two


def shard_bytes(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob("*/*/shards/*.h5")}


def test_two_processes_hold_the_rows_of_one(by_two_processes, model_dir, tmp_path, lensae, store, monkeypatch):
    copy = tmp_path / "two"
    shutil.copytree(by_two_processes[0], copy)
    report = by_two_processes[1]
    assert lensae("collect", model_dir("llama"), *SHARED)[0] == 0
    one, two = find_set(), read_set(next(copy.glob("*/*/manifest.json")).parent)
    assert report["rows"] == one.rows == two.rows and report["documents"] == 28
    assert {shard.rank for shard in two.manifest.shards} == {0, 1}
    assert_same_rows(one, two)
    assert not [fault for _file, faults in verify(two) for fault in faults]
    assert (two.path / "view.h5").is_file()
    monkeypatch.setenv("LENSAE_STORE", str(copy))
    before = shard_bytes(copy)
    for name in ("00000-1.h5", "00001-0.h5"):
        (two.path / "shards" / name).unlink()
    status, _out, err = lensae("store", "repair", "--json")
    assert status == 0, err
    assert shard_bytes(copy) == before
    assert lensae("collect", model_dir("llama"), *SHARED, "--shard-rows", "60")[0] == 0, "complete, whoever asks"


def test_processes_resume_after_a_kill(by_two_processes, model_dir, tmp_path, lensae, monkeypatch):
    cut = tmp_path / "cut"
    process = start_two(cut, model_dir("llama"))
    process.until(lambda: list(cut.glob("*/*/shards/0*.h5")))
    process.kill_all()
    monkeypatch.setenv("LENSAE_STORE", str(cut))
    manifest = json.loads(next(cut.glob("*/*/manifest.json")).read_text())
    assert not manifest["passes"][0]["completed_at"]
    status, _out, err = lensae("collect", model_dir("llama"), *SHARED, "--shard-rows", "60")
    assert status == 2 and "by 2 processes" in err and "torchrun" in err
    start_two(cut, model_dir("llama")).finish()
    assert shard_bytes(cut) == shard_bytes(by_two_processes[0]) and len(shard_bytes(cut)) > 4


def test_two_collects_into_one_set_at_once(lensae, store, model_dir):
    """The second is told; the first is not disturbed."""
    from lensae.core.locks import FolderLock

    folder = store / "tiny-llama" / "blocks.4.hook_resid_post"
    lock = FolderLock(folder)
    arguments = ("collect", model_dir("llama"), "--corpus", "probes", "--max-new-tokens", 4)
    status, _out, err = lensae(*arguments)
    assert status == 1 and "another process" in err
    lock.release()
    assert lensae(*arguments)[0] == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["passes"][0]["completed_at"]
