"""The public API: its names, its documentation, and a process that is left as it was."""

from __future__ import annotations

import inspect
import os
import random
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest

import lensae as library
from lensae._api.calls import NOT_IN_RECIPE
from lensae.core.recipe import TrainRecipe
from lensae.stages.collect.options import CollectOptions
from lensae.stages.steer.options import SteerOptions

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTATION = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENTATION, re.DOTALL)
NAMES = [name for name in library.__all__ if name != "__version__"]


@pytest.fixture(scope="module")
def small_store(tmp_path_factory, model_dir):
    """A store with a set of 100 short texts and an SAE without an index."""
    folder = tmp_path_factory.mktemp("api")
    texts = folder / "texts.txt"
    texts.write_text("\n".join(f"Text {n} is about the number {n * n}." for n in range(100)))
    store = library.Store(folder / "store")
    library.collect(store, model=model_dir("gpt2"), corpus=texts, generate=False, hooks=["blocks.3.hook_resid_post"])
    library.train(store, width=2, k=4, epochs=1, index=False)
    return store


def test_the_names_that_are_exported():
    assert sorted(NAMES, key=str.lower) == [
        *("build_index", "collect", "DamagedError", "evaluate", "Features", "LensaeError", "load_sae", "SAE", "steer"),
        *("Store", "train", "TrainRecipe", "UserError"),
    ]
    assert dir(library) == sorted(library.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pipeline'"):
        _ = library.pipeline


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_documented(name):
    value = getattr(library, name)
    assert value.__name__ == name and value.__module__.startswith("lensae.")
    assert value.__doc__ and value.__doc__.strip()
    assert re.search(rf"^## .*`{name}\b|`{name}`|lensae\.{name}\b", DOCUMENTATION, re.MULTILINE)
    methods = vars(value).items() if inspect.isclass(value) else ()
    for method, function in methods:
        if inspect.isfunction(function) and not method.startswith("_"):
            assert function.__doc__, f"{name}.{method}"


@pytest.mark.parametrize("name", ["build_index", "collect", "evaluate", "steer", "train"])
def test_options_are_keywords(name):
    store, *options = inspect.signature(getattr(library, name)).parameters.values()
    assert store.name == "store" and {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}
    assert {"device", "progress"} <= {option.name for option in options}
    assert all(option.annotation is not inspect.Parameter.empty for option in (store, *options))


@pytest.mark.parametrize(("name", "record"), [("collect", CollectOptions), ("steer", SteerOptions)])
def test_options_are_those_of_the_stage(name, record):
    given = inspect.signature(getattr(library, name)).parameters
    for field in fields(record):
        if field.default is not MISSING and field.name != "prompts":
            assert given[field.name].default == field.default, field.name
    assert {field.name for field in fields(record)} == set(given) - {"store", "device", "progress"}


def test_options_of_train_are_in_the_recipe():
    given = set(inspect.signature(library.train).parameters) - set(NOT_IN_RECIPE)
    assert given <= {field.name for field in fields(TrainRecipe)}


def test_type_checkers_see_what_is_exported():
    assert (ROOT / "lensae" / "py.typed").is_file()
    imported = re.findall(r"^    from [\w.]+ import (.*)$", (ROOT / "lensae" / "__init__.py").read_text(), re.MULTILINE)
    assert sorted(", ".join(imported).split(", ")) == sorted(NAMES)


def test_nothing_heavy_is_imported_before_it_is_used(small_store):
    code = (
        "import sys, lensae\n"
        "assert not {'numpy', 'h5py', 'torch'} & set(sys.modules)\n"
        "store = lensae.Store(sys.argv[1])\n"
        "assert len(store.sets()) == 1 and store.open().rows and lensae.UserError and lensae.collect\n"
        "assert not {'torch', 'transformers', 'transformer_lens'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(small_store.path)], check=True, cwd=ROOT, timeout=120)


def test_a_store_is_its_folder_wherever_one_is(small_store, tmp_path, monkeypatch):
    monkeypatch.chdir(small_store.path.parent)
    store = library.Store("store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENSAE_STORE", str(tmp_path / "other"))
    [entry] = store.sets()
    assert entry.name == store.open(entry.name).entry.name
    assert [sae.name for sae in store.saes()] == [sae.name for sae in store.saes(entry.name)]
    assert library.Store(tmp_path / "new").sets() == [] and not (tmp_path / "new").exists()
    assert not (tmp_path / "other").exists() and os.fspath(store) == str(store.path)


def test_load_sae_takes_either_kind_of_path(small_store):
    [entry] = small_store.saes()
    assert library.load_sae(entry.path).d_sae == library.load_sae(str(entry.path)).d_sae == 128


def test_what_is_wrong_is_said(small_store, monkeypatch):
    with pytest.raises(library.UserError, match="no activation set named"):
        library.train(small_store, set_name="nope")
    with pytest.raises(library.UserError, match="the device mps is not available"):
        library.evaluate(small_store, device="mps")
    with pytest.raises(library.UserError, match="no device named 'tpu'"):
        library.build_index(small_store, device="tpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(library.UserError, match="one process"):
        library.build_index(small_store)


def test_an_interrupted_pass_says_which_call_resumes_it(tmp_path, model_dir, monkeypatch):
    texts = tmp_path / "texts.txt"
    texts.write_text("One.\nTwo.")
    options = {"model": model_dir("gpt2"), "corpus": texts, "generate": False, "progress": interrupt}
    with pytest.raises(KeyboardInterrupt):
        library.collect(tmp_path / "store", **options)
    with pytest.raises(library.UserError) as caught:
        library.Store(tmp_path / "store").open()
    call = caught.value.hint.partition("lensae.")[2]
    assert eval(f"library.{call}", {"library": library}).documents == 2


def interrupt(what: str, done: int, total: int) -> None:
    if done:
        raise KeyboardInterrupt


def state_of_the_process() -> dict:
    """All that a caller may rely on."""
    import signal

    import torch
    import transformers

    logging = transformers.utils.logging
    return {
        "python's random state": random.getstate(),
        "NumPy's random state": [str(part) for part in np.random.get_state()],
        "torch's random state": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "default type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "verbosity": (logging.get_verbosity(), logging.is_progress_bar_enabled()),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "working directory": os.getcwd(),
        "error settings": np.geterr(),
    }


CALLS = {
    "collect": {"generate": False, "hooks": ["blocks.2.hook_resid_post"]},
    "train": {"set_name": "blocks.3.hook_resid_post", "width": 2, "k": 4, "epochs": 1, "name": "again"},
    "evaluate": {},
    "build_index": {},
    "steer": {"feature": None, "max_new_tokens": 2, "samples": 1},
}


def test_a_call_leaves_the_process_as_it_was(small_store, model_dir, monkeypatch):
    """Also when the caller has set everything to something unusual; and the result is the same."""
    import torch
    import transformers

    monkeypatch.setattr("ctypes.CDLL", None)  # what mallopt would be called through
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    library.build_index(small_store)
    feature = library.Features(small_store).list(k=1)[0].feature
    options = {**CALLS, "steer": {**CALLS["steer"], "feature": feature}}
    options["collect"] |= {"model": model_dir("gpt2"), "corpus": small_store.path.parent / "texts.txt"}
    try:
        logging.set_verbosity_info()
        torch.set_float32_matmul_precision("high")
        torch.set_default_dtype(torch.float64)
        for number, (name, given) in enumerate(options.items()):
            torch.manual_seed(number)
            random.seed(number)
            np.random.seed(number)
            before = state_of_the_process()
            with torch.no_grad():
                getattr(library, name)(small_store, **given)
            after = state_of_the_process()
            assert {key for key in before if before[key] != after[key]} == set(), name
    finally:
        logging.set_verbosity(level)
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
    first, second = (library.load_sae(sae.path).tensors for sae in small_store.saes())
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("hook", ["blocks.2.hook_resid_post", "blocks.2.attn.hook_z"])
def test_hooks_of_others_stay(model_dir, hook):
    from lensae import model as models
    from lensae.core.recipe import Sampling
    from lensae.model.generate import generate
    from lensae.model.read import read

    model = models.load(models.resolve(str(model_dir("gpt2"))), [hook])
    seen: list[str] = []
    model.add_hook(hook, lambda x, hook: seen.append(hook.name))
    model.widths([hook])
    model.order([hook])
    read(model, [[5, 6, 7]], [hook])
    generate(model, [[5, 6, 7]], Sampling(2), [0], [hook])
    seen.clear()
    model.forward(*two_tokens())
    assert len(seen) == 1


def two_tokens():
    import torch

    ids_BT = torch.tensor([[5, 6]])
    return ids_BT, torch.ones_like(ids_BT)


def test_progress_is_a_function_or_an_object(small_store, tmp_path):
    calls: list[tuple[str, int, int]] = []
    library.train(small_store, width=2, k=5, epochs=1, progress=lambda *call: calls.append(call))
    counted = [(done, total) for what, done, total in calls if total]
    assert counted[0][0] == 0 and counted[-1][0] <= counted[-1][1] and counted[-1][0] > 0
    assert any("explained variance" in what for what, _done, total in calls if not total)

    from lensae.stages.shared.progress import Silent

    class Counts(Silent):
        total = 0

        def advance(self, count: int, note: str = "") -> None:
            self.total += count

    counts = Counts()
    library.evaluate(small_store, progress=counts)
    assert counts.total > 0


def test_the_examples_run(model_dir, tmp_path, monkeypatch, capsys):
    """Every block of Python in docs/api.md, one after the other, with a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LENSAE_STORE", raising=False)
    names = {"model": str(model_dir("gpt2"))}
    for number, example in enumerate(EXAMPLES):
        try:
            exec(compile(example, f"docs/api.md, example {number}", "exec"), names)
        except Exception as error:
            raise AssertionError(f"docs/api.md, example {number}:\n{example}") from error
    assert len(EXAMPLES) == 11 and sorted(os.listdir(tmp_path)) == ["notes.txt", "runs"]
    assert "control" in capsys.readouterr().out


def test_the_script_is_short():
    lines = [line for line in EXAMPLES[0].splitlines() if line.strip()]
    assert len(lines) <= 20
