"""The feature index against brute force."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import HOOK, documents, write_set
from hypothesis import given, settings
from hypothesis import strategies as st

from lensae.core.errors import DamagedError, UserError
from lensae.core.paths import find_set
from lensae.index.build import encode_shard
from lensae.index.file import BINS, EDGES, histograms, invert, write_segment
from lensae.index.query import Index
from lensae.interpret.labels import auroc, label_scores, strongest_per_document
from lensae.interpret.subject import LabelModel
from lensae.sae.base import SAE
from lensae.store.reader import SetReader


def random_sae(d_model: int = 16, d_sae: int = 40, k: int = 6) -> SAE:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(d_sae, d_model, generator=generator)
    tensors = {"W_enc": w.T.clone(), "b_enc": torch.zeros(d_sae), "W_dec": w, "b_dec": torch.zeros(d_model)}
    return SAE({"architecture": "topk", "k": k, "d_in": d_model, "d_sae": d_sae}, tensors)


@pytest.fixture
def indexed(store) -> tuple[Index, np.ndarray, SetReader]:
    """An index over several shards, and the dense features of every row in order."""
    write_set(store / "toy" / HOOK, documents(60))
    reader, sae = SetReader(find_set()), random_sae()
    folder, dense = store / "index", []
    for number, shard in enumerate(reader.shards):
        write_segment(
            folder / shard.file,
            encode_shard(sae, reader.chunks(number), shard.rows),
            {"shard_sha256": shard.sha256, "rows": shard.rows},
        )
        dense.append(sae.encode(torch.from_numpy(np.concatenate(list(reader.chunks(number))))).numpy())
    assert len(dense) > 3
    return Index(folder, reader.shards), np.concatenate(dense), reader


def test_postings_are_all_firings_strongest_first(indexed):
    index, dense, reader = indexed
    first_row = np.cumsum([0] + [shard.rows for shard in reader.shards])
    for feature in range(index.features):
        found = list(index.postings(feature))
        values = [p.value for p in found]
        assert values == sorted(values, reverse=True)
        rows = {int(first_row[p.shard]) + p.row: p.value for p in found}
        assert rows == {int(r): float(dense[r, feature]) for r in np.flatnonzero(dense[:, feature])}


def test_figures(indexed):
    index, dense, _reader = indexed
    table, fires = index.table(), dense > 0
    np.testing.assert_array_equal(table["count"], fires.sum(0))
    np.testing.assert_allclose(table["density"], fires.mean(0))
    np.testing.assert_allclose(table["max"], dense.max(0))
    np.testing.assert_allclose(table["mean"], dense.sum(0) / np.maximum(fires.sum(0), 1), rtol=1e-5)
    stats = index.stats(3)
    assert sum(stats.histogram) == stats.count == fires[:, 3].sum()
    order = [s.feature for s in index.ranked("max", 5)]
    np.testing.assert_allclose(dense.max(0)[order], np.sort(dense.max(0))[::-1][:5])


def test_row_view_holds_the_same(indexed):
    index, dense, reader = indexed
    row = 0
    for number, shard in enumerate(reader.shards):
        indptr, feature, value = index.by_row(number)
        for r in range(shard.rows):
            part = slice(indptr[r], indptr[r + 1])
            np.testing.assert_allclose(value[part], dense[row][feature[part]])
            assert len(feature[part]) == (dense[row] > 0).sum()
            row += 1


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5), st.floats(2**-9, 2**17, width=32)), max_size=40))
def test_inversion(triples):
    unique = sorted({(r, f): v for r, f, v in triples}.items())
    row = np.array([k[0] for k, _ in unique], int)
    feature, value = np.array([k[1] for k, _ in unique], int), np.array([v for _, v in unique], np.float32)
    found = invert(9, 6, row, feature, value)
    for f in range(6):
        part = slice(found.indptr[f], found.indptr[f + 1])
        expected = sorted(((float(v), int(r)) for (r, g), v in unique if g == f), key=lambda p: (-p[0], p[1]))
        assert list(zip(found.value[part].tolist(), found.row[part].tolist(), strict=True)) == expected
    counts = histograms(found)
    assert counts.shape == (6, BINS) and counts.sum() == len(unique)
    for (_r, f), v in unique:
        inside = np.clip(np.searchsorted(EDGES, np.float32(v), side="right") - 1, 0, BINS - 1)
        assert counts[f, inside] > 0


def test_no_such_feature(indexed):
    index, _dense, _reader = indexed
    for feature in (-1, 40, 10**9):
        with pytest.raises(UserError, match="no feature") as error:
            index.stats(feature)
        assert "0 to 39" in error.value.hint


def test_missing_stale_and_damaged_segments(indexed, tmp_path):
    index, _dense, reader = indexed
    with pytest.raises(UserError, match="is missing") as error:
        Index(Path(tmp_path / "nowhere"), reader.shards)
    assert "main.py index" in error.value.hint
    with h5py.File(index.segment_path(1), "a") as segment:
        segment.attrs["shard_sha256"] = "another"
    with pytest.raises(UserError, match="lacks 1 of"):
        Index(index.folder, reader.shards)
    index.segment_path(1).write_bytes(b"nonsense")
    with pytest.raises(DamagedError, match="cannot be read"):
        Index(index.folder, reader.shards)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auroc_counts_pairs(pairs):
    scores, positive = np.array([float(s) for s, _ in pairs]), np.array([p for _, p in pairs])
    wins = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(wins) if wins else 0.5)


def test_label_scores_find_the_planted_feature():
    random = np.random.default_rng(0)
    labels = [["red", "green", "blue"][n % 3] for n in range(60)] + [""] * 5
    rows, features, values = [], [], []
    for n, label in enumerate(labels):
        for f in range(10):  # everywhere, often
            if random.random() < 0.5:
                rows.append(n), features.append(f), values.append(random.random())
        if label == "green":
            rows.append(n), features.append(10), values.append(5.0)
        rows.append(n), features.append(10), values.append(0.1)  # weaker firings of the same document do not count
    matrix = strongest_per_document(65, 12, np.array(rows), np.array(features), np.array(values))
    best = label_scores(matrix, labels, 3)[0]
    assert (best.feature, best.label, best.auroc) == (10, "green", 1.0)
    assert label_scores(matrix, ["one"] * 65, 3) == []


def test_label_model_reads_words():
    judge = LabelModel([("tram rails depot", "tram"), ("ocean wave harbour", "boat"), ("no label here", "")], str.split)
    assert judge.labels == ["boat", "tram"]
    assert judge.probability("the depot by the rails", "tram") > 0.7
    assert judge.probability("nothing known", "tram") == pytest.approx(0.5)
    assert sum(judge.probability("a harbour depot", label) for label in judge.labels) == pytest.approx(1)
