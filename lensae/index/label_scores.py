"""Which label a feature tells from the others, from the tables of labels.

Shapes: F features, L labels.
"""

from __future__ import annotations

import numpy as np

from lensae.index.ordering import group_starts, rank_in_group
from lensae.index.tables import Entries


def best_labels(labels: Entries, documents_L: np.ndarray, features: int) -> tuple[np.ndarray, np.ndarray]:
    """For each feature the label with the largest share of its activation and that share (F,), (F,); -1 and 0 for a
    feature that fires in no labelled document.

    The activation of a label is the mean over its documents of the largest activation in each, so that each label
    weighs the same however many documents it has.
    """
    best_F, share_F = np.full(features, -1), np.zeros(features)
    if not len(labels["feature"]):
        return best_F, share_F
    feature, mean = labels["feature"], labels["strongest"] / documents_L[labels["label"]]
    order = np.lexsort((labels["label"], -mean, feature))
    first = order[rank_in_group(feature[order]) == 0]
    best_F[feature[first]] = labels["label"][first]
    share_F[feature[first]] = mean[first] / np.bincount(feature, mean, features)[feature[first]]
    return best_F, share_F


def area_under_curve(bins: Entries, best_F: np.ndarray, documents_L: np.ndarray) -> np.ndarray:
    """How well the largest activation in a document tells the documents of each feature's best label from those of the
    other labels: the area under the ROC curve (F,), 0.5 where there are none to tell apart.

    It is how often a document of the label has the larger value of a pair, ties counting half (Hanley and McNeil
    1982). Values of one bin count as ties, so it differs from the exact area by at most half the share of pairs that
    fall into the same bin: sum over bins of p n / 2, for the shares p of the label's documents and n of the others.
    Documents in which a feature does not fire have the value 0 and are exact.
    """
    features, labelled = len(best_F), int(documents_L.sum())
    positives_F = np.where(best_F >= 0, np.append(documents_L, 0)[best_F], 0)
    negatives_F = labelled - positives_F
    order = np.lexsort((bins["bin"], bins["feature"]))
    feature = bins["feature"][order]
    documents = bins["documents"][order].astype(np.float64)
    positive = np.where(bins["label"][order] == best_F[feature], documents, 0)
    starts = group_starts(feature, bins["bin"][order])
    if len(starts):
        feature, documents, positive = (
            feature[starts],
            np.add.reduceat(documents, starts),
            np.add.reduceat(positive, starts),
        )
    negative: np.ndarray = documents - positive
    silent_negatives_F = negatives_F - np.bincount(feature, negative, features)
    silent_positives_F = positives_F - np.bincount(feature, positive, features)
    below = np.cumsum(negative) - negative
    if len(starts):
        first_of_group = group_starts(feature)
        below -= np.repeat(below[first_of_group], np.diff(np.append(first_of_group, len(feature))))
    wins_F: np.ndarray = np.bincount(feature, positive * (silent_negatives_F[feature] + below + negative / 2), features)
    wins_F = wins_F + silent_positives_F * silent_negatives_F / 2
    pairs_F = positives_F * negatives_F
    return np.divide(wins_F, pairs_F, out=np.full(features, 0.5), where=pairs_F > 0)
