"""The import rule, and what must stay light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lensae"
EVERYWHERE = {"records", "recipe", "paths", "registry", "errors", "durable", "deadline"} | {
    "manifest",
    "ahead",
    "allocation",
}
DOMAINS = {"corpus", "model", "store", "sae", "index", "steering", "interpret"}
HEAVY = {"torch", "transformers", "transformer_lens"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The part of lensae a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, whether it is at the top of the file) of everything a file imports."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def lensae_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name, _top in imports(path) if name.startswith("lensae.")}


def test_there_is_something_to_check():
    assert {room(p) for p in modules()} >= DOMAINS | {"stages", "views", "cli"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_rule(path):
    here, used = room(path), lensae_rooms(path) - EVERYWHERE - {"__version__"}
    if here in DOMAINS:
        others = used - {here}
        if here in {"index", "steering"}:
            names = {name for name, _top in imports(path) if name.startswith("lensae.sae")}
            assert all(name.startswith("lensae.sae.base") for name in names), names
            others -= {"sae"}
        assert not others, f"{here} imports {others}"
    if here in EVERYWHERE:
        assert not used - EVERYWHERE, f"{here} imports {used}"
    if here not in {"cli", "__main__"}:
        assert "cli" not in used, f"{here} imports cli"
    if here == "stages":
        assert "views" not in used, "stages import views"
    assert not any(name.split(".")[0] == "click" for name, _top in imports(path))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_transformers_only_in_model(path):
    names = {name.split(".")[0] for name, _top in imports(path)}
    if room(path) != "model":
        assert not names & {"transformers", "transformer_lens"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_pickle(path):
    source = path.read_text()
    assert "pickle" not in {name.split(".")[0] for name, _top in imports(path)}
    assert "torch.load(" not in source and "allow_pickle=True" not in source and "trust_remote_code=True" not in source


LIGHT = [
    ["--help"],
    ["collect", "--help"],
    ["steer", "--help"],
    ["store", "list"],
    ["features", "top", "0", "--k", "5"],
    ["features", "list", "--sort", "label"],
    ["features", "show", "1"],
    ["features", "top", "999999"],
    ["train", "--recipe", "no-such-file.toml"],
    ["collect", "--temperature", "-1"],
    ["collect", "--corpus", "nope"],
    ["steer", "--feature", "999999"],
    ["steer", "--feature", "1", "--op", "clmp"],
    ["evaluate", "--sae", "nope"],
    ["index", "--set", "nope"],
    ["experiment", "nope.toml"],
]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_never_load_torch(arguments, trained):
    watch = "import sys; from lensae.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    watch += f"print('HEAVY', sorted(set(sys.modules) & {HEAVY!r}))"
    environment = {**os.environ, "LENSAE_STORE": str(trained)}
    done = subprocess.run(
        [sys.executable, "-c", watch, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert "HEAVY []" in done.stdout, done.stdout[-500:] + done.stderr[-500:]


def test_plugins_are_found_by_file_name():
    from lensae import registry

    assert registry.names("sae.architectures") == [
        "batchtopk",
        "gated",
        "jumprelu",
        "matryoshka",
        "relu",
        "tied-l1",
        "topk",
    ]
    assert registry.names("corpus.readers") == ["csv", "hf", "jsonl", "parquet", "txt"]
    assert registry.names("steering.operations") == ["ablate", "add", "clamp"]


def test_help_shows_what_is_in_brackets(lensae):
    """Rich would take the name of a table for a style and leave it out."""
    for command, table in (("train", "[train]"), ("experiment", "[collect]")):
        assert table in lensae(command, "--help")[1]
