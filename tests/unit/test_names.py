"""Names say what they mean: the letters of shapes stand in a legend, and opaque words are not used as identifiers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted((ROOT / "lensae").rglob("*.py"))
FILES = LIBRARY + sorted((ROOT / "tests").rglob("*.py"))
# x_BD, indptr_F1, gate_2F: what follows the last underscore is a letter, or a number, for each dimension.
SHAPE = re.compile(r"(?:\w*[a-z]\w*|[A-Z])_(\d*[A-Z][A-Z0-9]*)")
OPAQUE = {"lane", "world", "torn", "Elsewhere", "Noted", "Held", "ahead", "together", "toys"}


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of everything that a file names: variables, parameters, attributes, functions, classes."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield node.id, line
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "os"):
            yield node.attr, line
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield node.arg, line
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, line


def legend(tree: ast.Module) -> set[str]:
    """The capital letters that the paragraph "Shapes: ..." of a module's docstring explains, each one a word there."""
    paragraph = re.search(r"^Shapes: (.*?)(\n\s*\n|\Z)", ast.get_docstring(tree) or "", re.MULTILINE | re.DOTALL)
    return set(re.findall(r"\b([A-Z])\s", paragraph[1])) if paragraph else set()


def letters(name: str) -> set[str]:
    """The letters of a name's shape; of a constant or a single letter none."""
    match = SHAPE.fullmatch(name)
    return set(re.findall("[A-Z]", match[1])) if match else set()


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_every_letter_of_a_shape_is_in_the_legend(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used: dict[str, tuple[str, int]] = {}
    for name, line in identifiers(tree):
        for letter in letters(name):
            used.setdefault(letter, (name, line))
    missing = [
        f"{relative(path)}:{line}: {letter} of {name}"
        for letter, (name, line) in sorted(used.items())
        if letter not in legend(tree)
    ]
    assert not missing, 'explain in the module docstring ("Shapes: B batch, ..."): ' + "; ".join(missing)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_opaque_names(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = [f"{relative(path)}:{line}: {name}" for name, line in identifiers(tree) if name.strip("_") in OPAQUE]
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert "Hooks" not in classes, "a class of callbacks is not named for hooks, which are points of a model"
    assert not used, "say what it is: " + "; ".join(used)
    assert path.stem not in OPAQUE, f"{relative(path)}: say what the file holds"


def test_letters_and_legends_are_read():
    tree = ast.parse(
        '"""Does something.\n\nShapes: B rows, D d_model, F features (the last\nK of them active), N\nrows.\n\nZ no."""'
    )
    assert legend(tree) == {"B", "D", "F", "K", "N"}
    assert (
        letters("x_BD") == {"B", "D"}
        and letters("indptr_F1") == {"F"}
        and letters("W_enc_FD") == letters("W_FD") == {"F", "D"}
    )
    assert letters("LARGEST_ROW") == letters("n_layers") == letters("TrainRecipe") == letters("b") == set()
