"""The import rule, and what must stay light."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lensae"
DOMAINS = {"corpus", "model", "store", "sae", "index", "steering", "interpret"}
# What each room may import beside itself.
MAY_IMPORT = {
    "core": set(),
    **{domain: {"core"} for domain in DOMAINS},
    "index": {"core", "sae"},
    "steering": {"core", "sae"},
    "stages": {"core", *DOMAINS},
    "views": {"core", "stages"},
    "_api": {"core", *DOMAINS, "stages"},
    "cli": {"core", *DOMAINS, "stages", "views"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> list[str]:
    """The dotted names that a file imports anywhere, but for those that only a type checker sees."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def modules_of(names: list[str]) -> set[str]:
    """The modules of lensae behind dotted names: a name may be a module or something in one."""
    return {next((m for m in (n, n.rpartition(".")[0]) if m in MODULES), n) for n in names if n.startswith("lensae.")}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_is_there():
    assert {room(module) for module in MODULES if module.count(".")} - {"__main__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    here, names = room(module_name(path)), imports(path)
    used = {room(module) for module in modules_of(names) if module != "lensae"}
    assert not used - MAY_IMPORT[here] - {here}
    if here in {"index", "steering"}:
        of_sae = {module for module in modules_of(names) if room(module) == "sae"}
        assert of_sae <= {"lensae.sae.base"}
    assert not any(name.split(".")[0] == "click" for name in names)


def test_no_circles():
    """No module imports itself by way of others, function-level imports included."""
    graph = {module: modules_of(imports(path)) & set(MODULES) - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("path", sorted((PACKAGE / "views").rglob("*.py")), ids=lambda p: p.name)
def test_views_know_the_records_of_stages_alone(path):
    for name in imports(path):
        if name.startswith("lensae.stages."):
            assert re.fullmatch(r"_?[A-Z]\w*", name.rpartition(".")[2]), f"{name} is neither a class nor a constant"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_transformers_only_in_model(path):
    names = {name.split(".")[0] for name in imports(path)}
    if room(module_name(path)) != "model":
        assert not names & {"transformers", "transformer_lens"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_pickle(path):
    source = path.read_text(encoding="utf-8")
    assert "pickle" not in {name.split(".")[0] for name in imports(path)}
    assert "torch.load(" not in source and "allow_pickle=True" not in source and "trust_remote_code=True" not in source


def test_help_shows_what_is_in_brackets(lensae):
    """Rich would take the name of a table for a style and leave it out."""
    for command, table in (("train", "[train]"), ("experiment", "[collect]")):
        assert table in lensae(command, "--help")[1]
