"""A corpus by name, path or prefix, read again from the start each time it is iterated."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from lensae.core import registry
from lensae.core.errors import UserError, unknown
from lensae.core.records import Prompt, ReadOptions

PLACEHOLDER = "{text}"
READERS = "corpus.readers"


@dataclass(frozen=True)
class Corpus:
    """Texts in order; `template` wraps each (`{text}` alone changes nothing).

    `count` is the number of texts, or None for a stream of unknown length; `sha256` is over the file's bytes and the
    template, or over the identity that a stream's reader reports.
    """

    name: str
    source: Path | str
    sha256: str
    template: str
    count: int | None
    reader: ModuleType = field(repr=False)
    options: ReadOptions = field(default_factory=ReadOptions)

    def __iter__(self) -> Iterator[Prompt]:
        return (p for p in self.reader.read(self.source, self.options) if p.text.strip())

    def prompt_text(self, prompt: Prompt) -> str:
        """What the model reads for `prompt`."""
        return self.template.replace(PLACEHOLDER, prompt.text)


def shipped() -> dict[str, Path]:
    """The corpora that come with lensae, by name: beside the package in a checkout, inside it when installed."""
    here = Path(__file__).resolve().parent
    for folder in (here.parents[1] / "corpora", here / "shipped"):
        paths = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
        if paths:
            return paths
    return {}


def load(name: str, options: ReadOptions | None = None) -> Corpus:
    """The corpus `name`: a shipped name, a file whose ending is the name of a reader, that of a reader and a name for
    it (`hf:<dataset>`), or `-` (text lines).

    A file is read once from start to end, so that any fault in it is reported before work begins; it is not kept in
    memory. A file `<stem>.template.txt` beside it, one line with `{text}` in it, wraps every text. Raises
    UserError for an unknown name or ending, a file that does not hold what its ending says, and one without text.
    """
    options = options or ReadOptions()
    prefix, _colon, rest = name.partition(":")
    if rest and prefix in registry.names(READERS) and _reads_names(reader := registry.load(READERS, prefix)):
        return _stream(name, reader, rest, options)
    path = _find(name)
    reader, template = _reader(path), _template(path)
    try:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
        digest.update(template.encode())
        corpus = Corpus(path.stem, path, digest.hexdigest(), template, None, reader, options)
        count = sum(1 for _prompt in corpus)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not count:
        raise UserError(f"{path} holds no text")
    return Corpus(path.stem, path, digest.hexdigest(), template, count, reader, options)


def _stream(name: str, reader: ModuleType, rest: str, options: ReadOptions) -> Corpus:
    digest = hashlib.sha256(f"{name}\0{reader.identity(rest)}".encode()).hexdigest()
    corpus = Corpus(rest.replace(":", "-"), rest, digest, PLACEHOLDER, None, reader, options)
    if next(iter(corpus), None) is None:
        raise UserError(f"{name} holds no text")
    return corpus


def _find(name: str) -> Path:
    if name == "-":
        return _standard_input()
    known = shipped()
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    if Path(name).suffix or "/" in name:
        raise UserError(f"there is no file {name}", f"shipped corpora: {', '.join(known)}")
    raise unknown("corpus", name, known)


def _standard_input() -> Path:
    """Standard input, copied to a temporary file so that it can be read twice."""
    folder = Path(tempfile.mkdtemp(prefix="lensae-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "stdin.txt"
    with open(path, "wb") as file:
        while block := sys.stdin.buffer.read(2**20):
            file.write(block)
    return path


def _reader(path: Path) -> ModuleType:
    """The reader of files with this ending."""
    ending = path.suffix.lstrip(".").lower()
    if ending in registry.names(READERS) and not _reads_names(reader := registry.load(READERS, ending)):
        return reader
    raise UserError(f"no reader for {path.name}", f"readers: {', '.join(registry.names(READERS))}")


def _reads_names(reader: ModuleType) -> bool:
    """Whether a reader reads what a name after its own means (`hf:<dataset>`), not files with its ending."""
    return hasattr(reader, "identity")


def _template(path: Path) -> str:
    file = path.with_name(path.stem + ".template.txt")
    if not file.is_file():
        return PLACEHOLDER
    template = file.read_text(encoding="utf-8").strip("\n")
    if template.count(PLACEHOLDER) != 1:
        raise UserError(f"{file} must hold {PLACEHOLDER} once")
    return template
