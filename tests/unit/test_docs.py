"""docs/architecture.md names every file of the package, and the links of every document lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
ROOMS = sorted(path.name for path in (ROOT / "lensae").iterdir() if (path / "__init__.py").is_file())


def section(room: str) -> str:
    """What is said of a room."""
    match = re.search(rf"^### lensae/{room}/.*?(?=^##)", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    return match[0] if match else ""


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_is_named(room):
    folder = ROOT / "lensae" / room
    files = [path.relative_to(folder) for path in folder.rglob("*.py") if path.name != "__init__.py"]
    names = {part for path in files for part in (*(f"{parent}/" for parent in path.parts[:-1]), path.name)}
    missing = sorted(name for name in names if not re.search(rf"(?<![\w.]){re.escape(name)}", section(room)))
    assert not missing, f"docs/architecture.md, lensae/{room}/: {', '.join(missing)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
