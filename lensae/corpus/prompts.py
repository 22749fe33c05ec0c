"""A corpus by name or path."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lensae import registry
from lensae.errors import UserError, unknown
from lensae.records import Prompt

PLACEHOLDER = "{text}"


@dataclass(frozen=True)
class Corpus:
    """Prompts in order; `template` wraps each text (it is `{text}` alone when there is none)."""

    name: str
    path: Path
    sha256: str
    template: str
    prompts: tuple[Prompt, ...]

    def prompt_text(self, prompt: Prompt) -> str:
        """What the model reads for `prompt`."""
        return self.template.replace(PLACEHOLDER, prompt.text)


def shipped() -> dict[str, Path]:
    """The corpora that come with lensae, by name: beside the package in a checkout, inside it when installed."""
    here = Path(__file__).resolve().parent
    for folder in (here.parents[1] / "corpora", here / "shipped"):
        found = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
        if found:
            return found
    return {}


def load(name: str) -> Corpus:
    """The corpus `name`: a shipped name, or the path of a file whose ending a reader knows.

    A file `<stem>.template.txt` beside it, one line with `{text}` in it, wraps every text. Raises UserError for an
    unknown name, an unknown ending, a file that cannot be read as what it says it is, and one without any text.
    """
    path = _find(name)
    reader = _reader(path)
    try:
        prompts = tuple(prompt for prompt in reader.read(path) if prompt.text.strip())
        digest = hashlib.sha256(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not prompts:
        raise UserError(f"{path} holds no text")
    template = _template(path)
    digest.update(template.encode())
    return Corpus(path.stem, path, digest.hexdigest(), template, prompts)


def _find(name: str) -> Path:
    known = shipped()
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    if Path(name).suffix or "/" in name:
        raise UserError(f"there is no file {name}", f"shipped corpora: {', '.join(known)}")
    raise unknown("corpus", name, known)


def _reader(path: Path):
    ending = path.suffix.lstrip(".").lower()
    known = registry.names("corpus.readers")
    if ending not in known:
        raise UserError(f"no reader for {path.name}", f"known endings: {', '.join('.' + n for n in known)}")
    return registry.load("corpus.readers", ending)


def _template(path: Path) -> str:
    file = path.with_name(path.stem + ".template.txt")
    if not file.is_file():
        return PLACEHOLDER
    template = file.read_text(encoding="utf-8").strip("\n")
    if template.count(PLACEHOLDER) != 1:
        raise UserError(f"{file} must hold {PLACEHOLDER} once")
    return template
