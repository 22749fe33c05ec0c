"""What the tables have in common, and what the table of one shard is made from.

Shapes: P firings, F features, T rows of a shard, N documents, S input tokens; a 1 behind a letter is one more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# Columns of equal length by name; "feature" is one of them and rises.
Entries = dict[str, np.ndarray]


@dataclass(frozen=True)
class Table:
    """A table of a segment: its name, the types of its columns, and how entries of several segments become one.

    Columns named row, document and label hold numbers that count inside the segment; they are made to count through
    all the segments before `combine` gets the entries, those of the first segment first.
    """

    name: str
    columns: Mapping[str, type]
    combine: Callable[[Entries], Entries]


@dataclass(frozen=True, kw_only=True)
class Firings:
    """Where and how strongly features fire in one shard: the rows and values (P,) of feature f are those of
    indptr_F1[f] ... indptr_F1[f + 1] - 1, in order of rows; values are above 0."""

    indptr_F1: np.ndarray
    feature_P: np.ndarray
    row_P: np.ndarray
    value_P: np.ndarray
    rows: int


@dataclass(frozen=True, kw_only=True)
class ShardColumns:
    """What a shard says of its rows and documents (lensae.store.schema has the columns)."""

    token_id_T: np.ndarray
    document_T: np.ndarray
    position_T: np.ndarray
    char_start_T: np.ndarray
    char_end_T: np.ndarray
    input_ids_S: np.ndarray
    input_start_N1: np.ndarray
    texts: list[str]
    labels: list[str]

    @property
    def documents(self) -> int:
        """N."""
        return len(self.texts)
