"""Comma-separated values in UTF-8 with a header line (--text-column, --label-column); quoted fields may span lines."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from lensae.core.errors import UserError
from lensae.core.records import Prompt, ReadOptions
from lensae.corpus.readers._lines import numbered_lines
from lensae.corpus.readers._rows import check_columns, prompt_of


def read(source: Path, options: ReadOptions) -> Iterator[Prompt]:
    """The documents of a .csv file; a missing id is the number of the row's last line."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    table = csv.DictReader(line + "\n" for _number, line in numbered_lines(source))
    try:
        if table.fieldnames is None:
            return
        check_columns(table.fieldnames, options, source)
        for row in table:
            yield prompt_of(row, options, f"{source}, line {table.line_num}", table.line_num)
    except csv.Error as error:
        raise UserError(f"{source}, line {table.line_num} is not CSV ({error})") from None
