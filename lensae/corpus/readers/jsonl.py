"""JSON lines: an object on each line, with `text` and optionally `id` and `label` (--text-column, --label-column)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lensae.core.errors import UserError
from lensae.core.records import Prompt, ReadOptions
from lensae.corpus.readers._lines import numbered_lines
from lensae.corpus.readers._rows import prompt_of


def read(source: Path, options: ReadOptions) -> Iterator[Prompt]:
    """The documents of a .jsonl file; a missing id is the line's number."""
    for number, line in numbered_lines(source):
        if line.strip():
            where = f"{source}, line {number}"
            yield prompt_of(_object(line, where, options), options, where, number)


def _object(line: str, where: str, options: ReadOptions) -> dict:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({getattr(error, 'msg', 'nested too deeply')})") from None
    if not isinstance(value, dict) or options.text_column not in value:
        hint = f'for example {{"{options.text_column}": "..."}}; --text-column names another key'
        raise UserError(f"{where} is not an object with a text in '{options.text_column}'", hint)
    return value
