"""Parquet tables (--text-column, --label-column)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lensae.core.errors import UserError
from lensae.core.records import Prompt, ReadOptions
from lensae.corpus.readers._rows import check_columns, prompt_of

ROWS_AT_ONCE = 1024


def read(source: Path, options: ReadOptions) -> Iterator[Prompt]:
    """The documents of a .parquet file; a missing id is the row's number."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(source) as table:
            columns = table.schema_arrow.names
            check_columns(columns, options, source)
            wanted = [name for name in (options.text_column, options.label_column, "id") if name in columns]
            number = 0
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield prompt_of(row, options, f"{source}, row {number}", number)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{source} cannot be read as Parquet: {reason}") from None
