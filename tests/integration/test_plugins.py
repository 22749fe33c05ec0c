"""A family, a reader and an operation that are dropped in as files, or installed by another package, and all used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lensae.core import registry
from lensae.core.errors import LensaeError, UserError

PACKAGES = {"reader": "corpus.readers", "family": "sae.architectures", "operation": "steering.operations"}
SOURCES = {
    "reader": '''"""A toy format: texts between bars. Its help has this first sentence alone."""

from lensae.core.records import Prompt


def read(source, options):
    for number, text in enumerate(source.read_text().split("|")):
        yield Prompt(f"text-{number}", text)
''',
    "family": '''"""A toy family (Nobody et al. 2020): half of what topk keeps. It is not seen in help."""

from lensae.sae.architectures import topk


class Trainer(topk.Trainer):
    @classmethod
    def sparsity(cls, recipe):
        return f"toy-k{recipe.k}"
''',
    "operation": '''"""A toy operation: the feature is doubled."""

takes_value = False


def delta(x, sae, feature, value):
    return sae.encode(x)[..., feature : feature + 1] * sae.W_dec[feature]
''',
}


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    """What is imported or found here is forgotten afterwards."""
    registry._entry_points.cache_clear()
    before = set(sys.modules)
    yield
    registry._entry_points.cache_clear()
    for name in set(sys.modules) - before:
        if "toy" in name:
            del sys.modules[name]


def as_files(tmp_path: Path, monkeypatch) -> dict[str, str]:
    """Each source as one more file of its package, by its name there."""
    import importlib

    for kind, package in PACKAGES.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / f"dropped_toy_{kind}.py").write_text(SOURCES[kind])
        paths = importlib.import_module(f"lensae.{package}").__path__
        monkeypatch.setattr(sys.modules[f"lensae.{package}"], "__path__", [*paths, str(folder)])
    return {kind: f"dropped-toy-{kind}" for kind in PACKAGES}


def as_entry_points(tmp_path: Path, monkeypatch) -> dict[str, str]:
    """Each source as a module of an installed package, by the name of its entry point."""
    site = tmp_path / "site"
    (site / "toy_plugins").mkdir(parents=True)
    (site / "toy_plugins" / "__init__.py").write_text("")
    about = site / "toy_plugins-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugins\nVersion: 1.0\n")
    lines = []
    for kind, package in PACKAGES.items():
        (site / "toy_plugins" / f"{kind}.py").write_text(SOURCES[kind])
        lines += [f"[{registry.GROUPS[package]}]", f"installed-toy-{kind} = toy_plugins.{kind}"]
    (about / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(site)
    return {kind: f"installed-toy-{kind}" for kind in PACKAGES}


@pytest.mark.parametrize("install", [as_files, as_entry_points])
def test_they_are_listed_and_used(install, tmp_path, monkeypatch, lensae, model_dir):
    names = install(tmp_path, monkeypatch)
    monkeypatch.setenv("COLUMNS", "120")
    for kind, command in (("reader", "collect"), ("family", "train"), ("operation", "steer")):
        out = lensae(command, "--help")[1]
        [line] = [line for line in out.splitlines() if names[kind] in line]
        sentence = SOURCES[kind].split('"""')[1].split(". ")[0] if kind == "reader" else ""
        assert sentence in line and "A toy " in line and "not seen" not in out and "first sentence" not in out
    assert "et al. 2020): half of what topk keeps" in lensae("train", "--help")[1]
    assert not [name for name in sys.modules if "toy_" in name], "help runs none of them"

    file = tmp_path / f"texts.{names['reader']}"
    file.write_text("|".join(f"The number {n} is one less than {n + 1}." for n in range(60)))
    hook = "blocks.3.hook_resid_post"
    status, out, err = lensae("collect", model_dir("gpt2"), "--corpus", file, "--hook", hook, "--no-generate", "--json")
    assert status == 0 and json.loads(out)["documents"] == 60, err
    options = ("--width", 1, "--k", 8, "--epochs", 2, "--batch", 64)
    status, out, err = lensae("train", "--arch", names["family"], *options, "--json")
    assert status == 0 and json.loads(out)["sae"] == f"{names['family']}-64-toy-k8", err
    feature = json.loads(lensae("features", "list", "--json")[1])[0]["feature"]
    options = ("--feature", feature, "--prompt", "The number 5", "--samples", 1, "--max-new-tokens", 4, "--json")
    status, out, err = lensae("steer", "--op", names["operation"], *options)
    report = json.loads(out)
    assert status == 0 and len(report["runs"]) == 4, err


def test_a_plug_in_that_cannot_be_imported(tmp_path, monkeypatch, lensae):
    """Its package is named; a file that is not Python has no line of help."""
    names = as_entry_points(tmp_path, monkeypatch)
    (tmp_path / "site" / "toy_plugins" / "operation.py").write_text("import nothing_of_that_name")
    with pytest.raises(LensaeError, match="'installed-toy-operation' of the installed package toy-plugins cannot"):
        registry.load("steering.operations", names["operation"])
    (tmp_path / "site" / "toy_plugins" / "family.py").write_text("this is not Python")
    assert registry.summary("sae.architectures", names["family"]) == ""
    assert lensae("train", "--help")[0] == 0
    with pytest.raises(UserError, match="no reader named 'nope'"):
        registry.load("corpus.readers", "nope")
