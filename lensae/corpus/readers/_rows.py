"""Shared by the readers of tables: columns chosen by name, and a check that their values are text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from lensae.core.errors import UserError, nearest
from lensae.core.records import Prompt, ReadOptions

SURROGATE = re.compile("[\ud800-\udfff]")


def check_columns(columns: Collection[str], options: ReadOptions, where: object) -> None:
    """Raise UserError, naming the nearest column, when the text column, or a chosen label column, does not exist."""
    wanted = [options.text_column]
    if options.label_column != ReadOptions.label_column:
        wanted.append(options.label_column)
    for name in wanted:
        if name not in columns:
            hint = nearest(name, columns) or "it has " + ", ".join(sorted(columns)[:12])
            raise UserError(f"{where} has no column '{name}'", hint + "; --text-column and --label-column choose")


def prompt_of(row: Mapping, options: ReadOptions, where: str, number: int) -> Prompt:
    """The document of one row; `where` names it in an error and `number` is its id when it has none."""
    text = row.get(options.text_column)
    if not isinstance(text, str):
        kind = "nothing" if text is None else type(text).__name__
        raise UserError(f"{where}: '{options.text_column}' holds {kind}, not text")
    if SURROGATE.search(text):
        raise UserError(f"{where} holds half of a surrogate pair, which is not text")
    label, row_id = row.get(options.label_column), row.get("id")
    return Prompt(f"line-{number}" if row_id is None else str(row_id), text, "" if label is None else str(label))
