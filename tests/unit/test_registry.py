"""Plug-ins are what lies in their packages: named nowhere else, each with a line of help."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from lensae.core import registry
from lensae.core.errors import UserError

PACKAGE = Path(registry.__file__).resolve().parents[1]
PACKAGES = ("corpus.readers", "sae.architectures", "sae.formats", "steering.operations")
ROOMS = ("_api", "cli", "core", "stages", "views")


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_those_of_the_files(package):
    files = [path.stem for path in PACKAGE.joinpath(*package.split(".")).glob("*.py")]
    assert registry.names(package) == sorted(name.replace("_", "-") for name in files if not name.startswith("_"))


@pytest.mark.parametrize("package", PACKAGES)
def test_each_has_a_line_of_help(package):
    for name in registry.names(package):
        line = registry.summary(package, name)
        assert len(line) > 15 and "\n" not in line and not line.endswith("."), (name, line)


@pytest.mark.parametrize("package", ["corpus.readers", "sae.architectures", "steering.operations"])
def test_no_other_file_lists_them(package):
    """Three of their names in one text are a list that a new file would have to be added to."""
    names = registry.names(package)
    for path in (path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")):
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        for text in texts:
            words = set(re.findall(r"[\w-]+", text)) if isinstance(text, str) else set()
            assert len(words & set(names)) < 3, f"{path}: {text}"


def test_a_name_that_is_not_known():
    with pytest.raises(UserError, match="no architecture named 'topkk'") as error:
        registry.check("sae.architectures", "topkk")
    assert "topk" in error.value.hint
