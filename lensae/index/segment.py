"""The segment of one shard, made in memory from the features of its rows.

Shapes: P firings, T rows of the shard, F features, N documents; a 1 behind a letter is one more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lensae.index.file import BINS, EDGES, Segment
from lensae.index.ordering import indptr_of
from lensae.index.rows import EncodedRows
from lensae.index.tables import Entries, Firings, ShardColumns, contexts, documents, labels, postings, tokens
from lensae.index.vocabulary import LabelNames, Vocabulary, label_codes

ROOT_TWO_MANTISSA = 3_474_676  # the least mantissa of a float32 whose significand is above sqrt(2)


def segment_of(encoded: EncodedRows, columns: ShardColumns) -> Segment:
    """The segment of one shard."""
    firings = encoded.by_feature()
    names = LabelNames.of(columns)
    code_N = label_codes(columns, names.names)
    posted = postings.build(firings)
    of_documents = documents.build(firings, columns)
    tables = (
        (postings.TABLE, posted),
        (contexts.TABLE, contexts.build(posted, contexts.context_hashes(columns))),
        (tokens.TABLE, tokens.build(firings, columns)),
        (documents.TABLE, of_documents),
        (labels.TABLE, labels.build(of_documents, code_N)),
        (labels.BINS_TABLE, labels.build_bins(of_documents, code_N)),
    )
    arrays: dict[str, np.ndarray] = {**_totals(firings), **names.arrays(), **Vocabulary.of(columns).arrays()}
    for table, entries in tables:
        arrays |= _columns(table.name, table.columns, entries, encoded.features)
    return Segment(arrays, firings.rows, columns.documents)


def _columns(name: str, columns: Mapping[str, type], entries: Entries, features: int) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {
        f"{name}/{column}": entries[column].astype(kind, copy=False) for column, kind in columns.items()
    }
    return {f"{name}/indptr": indptr_of(entries["feature"], features), **arrays}


def _totals(firings: Firings) -> dict[str, np.ndarray]:
    """Each feature's summed activation (F,) and its histogram (F, BINS)."""
    features = len(firings.indptr_F1) - 1
    total = np.bincount(firings.feature_P, weights=firings.value_P, minlength=features)
    cell_P = firings.feature_P.astype(np.int64) * BINS + histogram_bin(firings.value_P)
    counts = np.bincount(cell_P, minlength=features * BINS).astype(np.uint32)
    return {"features/sum": total, "features/histogram": counts.reshape(features, BINS)}


def histogram_bin(value: np.ndarray) -> np.ndarray:
    """The bin of positive float32 values in lensae.index.file.EDGES, from their exponent and mantissa."""
    bits = value.view(np.int32)
    upper_half = (bits & 0x7FFFFF) >= ROOT_TWO_MANTISSA
    lowest_exponent = round(np.log2(EDGES[0]))
    return np.clip(2 * ((bits >> 23) - 127 - lowest_exponent) + upper_half, 0, BINS - 1)
