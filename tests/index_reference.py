"""What an index holds, worked out by brute force from dense features.

Shapes: T rows of a set, F features, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lensae.core.records import LabelScore
from lensae.store.reader import SetReader


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Every row of a set: its features, token, document (numbered through all shards) and context, and each label."""

    features_TF: np.ndarray
    token_T: np.ndarray
    text_T: list[str]
    document_T: np.ndarray
    context_T: list[tuple[int, ...]]
    labels_N: list[str]


def read_rows(reader: SetReader, features_TF: np.ndarray) -> Rows:
    """The rows of a set whose features are given."""
    token, text, document, context, labels = [], [], [], [], []
    for number in range(len(reader.shards)):
        with reader.shard(number) as shard:
            names = ("token_id", "document", "position", "char_start", "char_end")
            texts, stored = shard.texts("text"), [shard.document(n) for n in range(shard.n_documents)]
            for one, index, position, start, end in zip(*(shard.read(name).tolist() for name in names), strict=True):
                token.append(one)
                text.append(texts[index][start:end])
                document.append(len(labels) + index)
                context.append(tuple(stored[index].input_ids[: position + 1].tolist()))
            labels += shard.texts("label")
    return Rows(
        features_TF=features_TF,
        token_T=np.array(token),
        text_T=text,
        document_T=np.array(document),
        context_T=context,
        labels_N=labels,
    )


def strongest_per_document(rows: Rows) -> np.ndarray:
    """The largest activation of each feature in each document (N, F)."""
    strongest_NF = np.zeros((len(rows.labels_N), rows.features_TF.shape[1]), np.float32)
    np.maximum.at(strongest_NF, rows.document_T, rows.features_TF)
    return strongest_NF


def contexts(rows: Rows, feature: int) -> list[tuple[float, int, int]]:
    """(value, row, copies) of the strongest row in each context in which a feature fires, falling."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in np.flatnonzero(rows.features_TF[:, feature]):
        groups.setdefault(rows.context_T[row], []).append(int(row))
    entries = []
    for members in groups.values():
        best = max(members, key=lambda row: (rows.features_TF[row, feature], -row))
        entries.append((float(rows.features_TF[best, feature]), best, len(members)))
    return sorted(entries, key=lambda entry: (-entry[0], entry[1]))


def tokens(rows: Rows, feature: int) -> list[tuple[str, int, int, float]]:
    """Of each token on which a feature fires: the text of its first occurrence, the rows on which it fires, the rows
    there are, and the summed activation; sorted."""
    value_T = rows.features_TF[:, feature]
    entries = []
    for token in np.unique(rows.token_T[value_T > 0]):
        same = rows.token_T == token
        fires, text = same & (value_T > 0), rows.text_T[np.flatnonzero(same)[0]]
        entries.append((text, int(fires.sum()), int(same.sum()), float(value_T[fires].sum(dtype=np.float64))))
    return sorted(entries)


def label_means(rows: Rows, feature: int) -> dict[str, float]:
    """Label -> mean activation over all its rows."""
    label_T = np.array(rows.labels_N)[rows.document_T]
    return {str(label): float(rows.features_TF[label_T == label, feature].mean()) for label in set(label_T) - {""}}


def auroc(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
    """The area under the ROC curve: how often a positive scores higher than a negative, ties counting half."""
    n_positive, n_negative = int(positive_N.sum()), int((~positive_N).sum())
    if not n_positive or not n_negative:
        return 0.5
    ranks = stats.rankdata(scores_N)
    return float((ranks[positive_N].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def auroc_error_bound(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
    """By how much an area from bins may be off: half the share of pairs in one bin (lensae.index.label_scores)."""
    from lensae.index.tables.labels import bin_of

    fires_N = scores_N > 0
    bins = bin_of(scores_N[fires_N])
    counts = [np.bincount(bins[side[fires_N]], minlength=2**12) for side in (positive_N, ~positive_N)]
    return float((counts[0] * counts[1]).sum() / (2 * positive_N.sum() * (~positive_N).sum()))


def label_scores(strongest_NF: np.ndarray, labels: Sequence[str]) -> list[LabelScore]:
    """The score of every feature for the label with the largest share of its activation, in order of features."""
    labelled = np.array([bool(label) for label in labels])
    names = sorted({label for label in labels if label})
    values_NF, code_N = strongest_NF[labelled], np.array([names.index(label) for label in labels if label])
    mean_LF = np.stack([values_NF[code_N == code].mean(0, dtype=np.float64) for code in range(len(names))])
    scores = []
    for feature in range(values_NF.shape[1]):
        best, total = int(mean_LF[:, feature].argmax()), mean_LF[:, feature].sum()
        share = float(mean_LF[best, feature] / total) if total else 0.0
        area = auroc(values_NF[:, feature], code_N == best)
        scores.append(LabelScore(feature, names[best], share, area, int((values_NF[:, feature] > 0).sum())))
    return scores
