"""Which label each feature separates from the others, over the labelled documents of a set.

Shapes: N documents, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse, stats

from lensae.core.records import LabelScore


def strongest_per_document(
    documents: int, features: int, document: np.ndarray, feature: np.ndarray, value: np.ndarray
) -> sparse.csc_matrix:
    """The largest activation (N, F) of each feature in each document, from triples in any order."""
    order = np.lexsort((value, feature, document))
    document, feature, value = document[order], feature[order], value[order]
    last = np.ones(len(value), bool)
    last[:-1] = (document[1:] != document[:-1]) | (feature[1:] != feature[:-1])
    return sparse.csc_matrix((value[last], (document[last], feature[last])), shape=(documents, features))


def auroc(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
    """The area under the ROC curve: how often a positive scores higher than a negative, ties counting half."""
    n_positive, n_negative = int(positive_N.sum()), int((~positive_N).sum())
    if not n_positive or not n_negative:
        return 0.5
    ranks = stats.rankdata(scores_N)
    return float((ranks[positive_N].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def label_scores(
    strongest_NF: sparse.csc_matrix, labels: Sequence[str], k: int, least_documents: int = 10
) -> list[LabelScore]:
    """The `k` features that best separate one label from the others, by AUROC over documents, falling.

    Only documents with a label count, and only features that fire in `least_documents` of them. A feature is scored
    for the label with the largest share of its activation, each label weighted equally.
    """
    labelled = np.array([bool(label) for label in labels])
    names = sorted({label for label in labels if label})
    if len(names) < 2:
        return []
    matrix = strongest_NF[labelled]
    code = np.array([names.index(label) for label in labels if label])
    means = np.stack([np.asarray(matrix[code == c].mean(axis=0)).ravel() for c in range(len(names))])
    share = means / np.maximum(means.sum(0), 1e-12)
    fires = np.diff(matrix.indptr)
    candidates = np.flatnonzero(fires >= least_documents)
    candidates = candidates[np.argsort(-share.max(0)[candidates], kind="stable")][: 20 * k]
    scores = []
    for feature in candidates:
        best = int(share[:, feature].argmax())
        area = auroc(matrix[:, [feature]].toarray().ravel(), code == best)
        scores.append(LabelScore(int(feature), names[best], float(share[best, feature]), area, int(fires[feature])))
    return sorted(scores, key=lambda score: -score.auroc)[:k]
