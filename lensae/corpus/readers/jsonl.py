"""JSON lines: one object a line with `text`, and perhaps `id` and `label`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lensae.corpus.readers._lines import numbered_lines
from lensae.errors import UserError
from lensae.records import Prompt


def read(path: Path) -> Iterator[Prompt]:
    """The documents of a .jsonl file; a missing id is the line's number."""
    for number, line in numbered_lines(path):
        if line.strip():
            yield _prompt(line, f"{path}, line {number}", number)


def _prompt(line: str, where: str, number: int) -> Prompt:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({getattr(error, 'msg', 'nested too deeply')})") from None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise UserError(f"{where} is not an object with a text in 'text'", 'for example {"text": "..."}')
    if any(0xD800 <= ord(c) < 0xE000 for c in value["text"]):
        raise UserError(f"{where} holds half of a surrogate pair, which is not text")
    return Prompt(str(value.get("id", f"line-{number}")), value["text"], str(value.get("label") or ""))
