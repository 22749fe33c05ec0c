"""The summary of an index: what lists of features need, computed from all segments; its cost does not grow with rows.

Shapes: F features, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lensae.index.file import Segment, create, write_array
from lensae.index.label_scores import area_under_curve, best_labels
from lensae.index.merge import combined_blocks, feature_totals
from lensae.index.tables import labels
from lensae.index.vocabulary import LabelNames, Vocabulary, merge_label_names, merge_vocabularies


def write_summary(segments: Sequence[Segment], path: Path) -> None:
    """Write the summary of the set that `segments` are over."""
    rows, documents = (sum(getattr(one, name) for one in segments) for name in ("rows", "documents"))
    names, codes = merge_label_names([LabelNames.read(one.arrays) for one in segments])
    vocabulary = merge_vocabularies([Vocabulary.read(one.arrays) for one in segments])
    arrays = {
        "features/count": sum(np.diff(one.arrays["postings/indptr"][...]) for one in segments),
        "features/max": np.maximum.reduce([_largest(one) for one in segments]),
        **feature_totals(segments),
        **_label_scores(segments, names.documents_L, codes),
        **names.arrays(),
        **vocabulary.arrays(),
    }
    with create(path, {"rows": rows, "documents": documents}) as file:
        for name, array in arrays.items():
            write_array(file, name, array)


def _largest(segment: Segment) -> np.ndarray:
    """The largest activation of each feature (F,), 0 for one that never fires: the first of its contexts."""
    indptr_F1, value = segment.arrays["contexts/indptr"][...], segment.arrays["contexts/value"][...]
    fires_F = np.diff(indptr_F1) > 0
    largest_F = np.zeros(len(fires_F), np.float32)
    largest_F[fires_F] = value[indptr_F1[:-1][fires_F]]
    return largest_F


def _label_scores(
    segments: Sequence[Segment], documents_L: np.ndarray, codes: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Each feature's label, the label's share of its activation, the area under the ROC curve, and in how many
    labelled documents it fires, (F,) each."""
    features = len(segments[0].arrays["features/sum"])
    fires_F, label_F = np.zeros(features, np.uint32), np.full(features, -1, np.int32)
    share_F, auroc_F = np.zeros(features), np.full(features, 0.5)
    for first, last, entries in combined_blocks(segments, labels.TABLE, codes):
        own = {**entries, "feature": entries["feature"] - first}
        label_F[first:last], share_F[first:last] = best_labels(own, documents_L, last - first)
        fires_F[first:last] = np.bincount(own["feature"], entries["documents"], last - first)
    for first, last, entries in combined_blocks(segments, labels.BINS_TABLE, codes):
        own = {**entries, "feature": entries["feature"] - first}
        auroc_F[first:last] = area_under_curve(own, label_F[first:last], documents_L)
    names = ("label", "share", "auroc", "label_documents")
    columns: tuple[np.ndarray, ...] = (label_F, share_F, auroc_F, fires_F)
    return {f"features/{name}": column for name, column in zip(names, columns, strict=True)}
