"""The feature index against brute force: what is looked up, how it is built, and when it is out of date."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import index_reference as reference
import numpy as np
import pytest
import torch
from helpers import HOOK, MODEL, documents, write_set, writer
from hypothesis import given, settings
from hypothesis import strategies as st

from lensae.core.durable import write_json
from lensae.core.errors import DamagedError, LensaeError, UserError
from lensae.core.paths import find_pair
from lensae.core.recipe import TrainRecipe
from lensae.core.training_record import SetRecord, TrainingRecord
from lensae.index import merge as merging
from lensae.index.file import BINS, EDGES
from lensae.index.label_scores import area_under_curve
from lensae.index.manifest import FANOUT, SaeIdentity, SegmentRange, out_of_date, plan
from lensae.index.ordering import expand_ranges, falling_key, rank_in_group, stable_order
from lensae.index.query import Index
from lensae.index.segment import histogram_bin
from lensae.index.tables import contexts, labels
from lensae.index.verify import verify_index
from lensae.sae.base import SAE
from lensae.sae.formats.saelens import save
from lensae.stages import features as lookup
from lensae.stages import index as stage
from lensae.store.reader import SetReader

COPIES = (3, 7, 20)  # documents that are there twice


def random_sae(d_model: int = 16, d_sae: int = 40, k: int = 6, seed: int = 0) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(d_sae, d_model, generator=generator)
    tensors = {"W_enc": w.T.clone(), "b_enc": torch.zeros(d_sae), "W_dec": w, "b_dec": torch.zeros(d_model)}
    return SAE({"architecture": "topk", "k": k, "d_in": d_model, "d_sae": d_sae}, tensors)


def write_sae(folder: Path, sae: SAE) -> None:
    """An SAE that is found as the current one."""
    save(folder, sae)
    trained_on = SetRecord(name=f"toy/{HOOK}", hook=HOOK, rows=1, model=MODEL, shards_sha256=[])
    record = TrainingRecord(recipe=TrainRecipe(), set=trained_on, completed_at="2026-01-01T00:00:00+00:00")
    write_json(folder / "training.json", record.to_json())


def made(count: int) -> list:
    """Documents of which some are there twice and some have no label."""
    originals = documents(count)
    copies = [replace(originals[n], label="") for n in COPIES if n < count]
    return originals + copies


def make_index(store: Path, count: int, shard_rows: int = 64) -> Path:
    """A set with an SAE and its index; returns the index's folder."""
    write_set(store / "toy" / HOOK, made(count), shard_rows=shard_rows)
    write_sae(store / "toy" / HOOK / "saes" / "one", random_sae())
    stage.build()
    return find_pair(None, None)[1].index_path


@pytest.fixture(scope="module")
def looked_up(tmp_path_factory) -> tuple[Path, reference.Rows]:
    """A store whose index has merged segments and single ones, to be looked at and not changed, and what it is of."""
    store = tmp_path_factory.mktemp("indexed") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSAE_STORE", str(store))
        make_index(store, 60)
        reader = SetReader(find_pair(None, None)[0])
    chunks = [chunk for number in range(len(reader.shards)) for chunk in reader.chunks(number)]
    return store, reference.read_rows(reader, random_sae().encode(torch.from_numpy(np.concatenate(chunks))).numpy())


@pytest.fixture
def indexed(looked_up, monkeypatch) -> tuple[Index, reference.Rows, SetReader]:
    """Its index, its rows and its set."""
    store, rows = looked_up
    monkeypatch.setenv("LENSAE_STORE", str(store))
    entry, sae = find_pair(None, None)
    index = Index(sae.index_path)
    assert len(entry.manifest.shards) > FANOUT and 1 < len(index.manifest.segments) < FANOUT
    return index, rows, SetReader(entry)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of an index."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def values(files: dict[str, bytes]) -> dict[str, object]:
    """The datasets of the index files, wherever HDF5 put them in the file."""
    datasets = {}
    for name, data in files.items():
        if name.endswith(".h5"):
            with h5py.File(io.BytesIO(data), "r") as file:
                paths: list[str] = []
                file.visit(paths.append)
                datasets |= {(name, path): file[path][...].tolist() for path in paths if hasattr(file[path], "dtype")}
    return datasets


class TestQueries:
    """What is looked up is what brute force finds."""

    def test_postings_are_all_firings_strongest_first(self, indexed):
        index, rows, reader = indexed
        first_row = np.cumsum([0] + [shard.rows for shard in reader.shards])
        for feature in range(index.features):
            postings = list(index.postings(feature))
            values = [posting.value for posting in postings]
            assert values == sorted(values, reverse=True)
            by_row = {int(first_row[one.shard]) + one.row: one.value for one in postings}
            fires = np.flatnonzero(rows.features_TF[:, feature])
            assert by_row.keys() == set(fires.tolist())
            np.testing.assert_allclose([by_row[row] for row in fires], rows.features_TF[fires, feature], rtol=1e-5)

    def test_figures(self, indexed):
        index, rows, _reader = indexed
        table, fires = index.table(), rows.features_TF > 0
        np.testing.assert_array_equal(table["count"], fires.sum(0))
        np.testing.assert_allclose(table["density"], fires.mean(0))
        np.testing.assert_allclose(table["max"], rows.features_TF.max(0), rtol=1e-5)
        np.testing.assert_allclose(table["mean"], rows.features_TF.sum(0) / np.maximum(fires.sum(0), 1), rtol=1e-5)
        for feature in range(index.features):
            stats = index.stats(feature)
            assert (stats.count, stats.max) == (table["count"][feature], table["max"][feature])
            assert stats.mean == pytest.approx(table["mean"][feature]) and sum(stats.histogram) == stats.count
        order = [stats.feature for stats in index.ranked("max", 5)]
        np.testing.assert_allclose(table["max"][order], np.sort(table["max"])[::-1][:5])

    def test_contexts_are_different_and_copies_counted(self, indexed):
        index, rows, reader = indexed
        first_row = np.cumsum([0] + [shard.rows for shard in reader.shards])
        repeated = 0
        for feature in range(index.features):
            expected = reference.contexts(rows, feature)[:10]
            entries = index.contexts(feature, 10)
            assert [one.copies for one in entries] == [copies for _value, _row, copies in expected]
            at = [int(first_row[one.posting.shard]) + one.posting.row for one in entries]
            assert at == [row for _value, row, _copies in expected]
            np.testing.assert_allclose([one.posting.value for one in entries], [e[0] for e in expected], rtol=1e-5)
            repeated += sum(one.copies > 1 for one in entries)
        assert repeated > 20

    def test_examples_from_the_table_and_from_the_postings_are_the_same(self, indexed):
        opened = lookup.open_lookup()
        for feature in (3, 30):
            total = len(reference.contexts(indexed[1], feature))
            assert lookup.top(opened, feature, 5) == lookup.top(opened, feature, 10)[:5]
            everything = lookup.top_by_postings(opened, feature, total + 1)
            assert lookup.top(opened, feature, total + 1) == everything and len(everything) == total

    def test_more_contexts_than_the_table_holds(self, store, monkeypatch):
        monkeypatch.setattr(contexts, "KEPT", 4)
        make_index(store, 60)
        opened = lookup.open_lookup()
        assert opened.index.contexts(0, 5) is None and len(opened.index.contexts(0, 4)) == 4
        few, many = lookup.top(opened, 0, 4), lookup.top(opened, 0, 9)
        assert [(one.shard, one.row) for one in few] == [(one.shard, one.row) for one in many[:4]] and len(many) == 9

    def test_tokens(self, indexed):
        index, rows, _reader = indexed
        for feature in range(index.features):
            expected = reference.tokens(rows, feature)
            uses = index.tokens(feature, 1000)
            mass = [use.fires * use.mean for use in uses]
            assert mass == sorted(mass, reverse=True)
            entries = sorted((use.token, use.fires, use.occurs, use.fires * use.mean) for use in uses)
            assert [entry[:3] for entry in entries] == [entry[:3] for entry in expected]
            np.testing.assert_allclose([one[3] for one in entries], [one[3] for one in expected], rtol=1e-5)
            assert index.tokens(feature, 3) == uses[:3]

    def test_labels(self, indexed):
        index, rows, _reader = indexed
        for feature in range(index.features):
            means = index.label_means(feature)
            assert dict(means) == pytest.approx(reference.label_means(rows, feature), rel=1e-5)
            assert [mean for _label, mean in means] == sorted((mean for _label, mean in means), reverse=True)

    def test_label_scores(self, indexed):
        index, rows, _reader = indexed
        strongest_NF = reference.strongest_per_document(rows)
        expected = reference.label_scores(strongest_NF, rows.labels_N)
        scores = index.label_scores(1000)
        assert {score.feature for score in scores} == {score.feature for score in expected if score.documents >= 10}
        labelled = np.array([bool(label) for label in rows.labels_N])
        for score in scores:
            exact = expected[score.feature]
            assert (score.label, score.documents) == (exact.label, exact.documents)
            assert score.share == pytest.approx(exact.share, rel=1e-5)
            positive_N = np.array([label == score.label for label in rows.labels_N])
            bound = reference.auroc_error_bound(strongest_NF[labelled, score.feature], positive_N[labelled])
            assert abs(score.auroc - exact.auroc) <= bound + 1e-9 and bound < 0.05
        assert [score.auroc for score in scores] == sorted((score.auroc for score in scores), reverse=True)

    def test_documents(self, indexed):
        index, rows, _reader = indexed
        strongest_NF = reference.strongest_per_document(rows)
        for feature in range(index.features):
            document, value = index.documents(feature)
            np.testing.assert_array_equal(document, np.flatnonzero(strongest_NF[:, feature]))
            np.testing.assert_allclose(value, strongest_NF[document, feature], rtol=1e-5)

    def test_row_view_holds_the_same(self, indexed):
        index, rows, reader = indexed
        row = 0
        for number, shard in enumerate(reader.shards):
            indptr, feature, value = index.by_row(number)
            for one in range(shard.rows):
                part = slice(indptr[one], indptr[one + 1])
                assert set(feature[part]) == set(np.flatnonzero(rows.features_TF[row]))
                np.testing.assert_allclose(value[part], rows.features_TF[row][feature[part]], rtol=1e-5)
                row += 1

    def test_no_such_feature(self, indexed):
        index, _rows, _reader = indexed
        for feature in (-1, 40, 10**9):
            for query in (index.stats, index.tokens, index.label_means, index.postings, index.documents):
                with pytest.raises(UserError, match="no feature") as error:
                    query(feature)
                assert "0 to 39" in error.value.hint

    def test_one_label_is_not_told_from_others(self, store):
        write_set(store / "toy" / HOOK, [replace(one, label="red") for one in documents(20)])
        write_sae(store / "toy" / HOOK / "saes" / "one", random_sae())
        opened = lookup.open_lookup()
        with pytest.raises(UserError, match="fewer than two labels"):
            lookup.by_label(opened)
        assert lookup.feature_label(opened, 0) == ""

    def test_a_query_reads_no_shard_but_those_it_shows(self, indexed, monkeypatch):
        _index, _rows, reader = indexed
        opened = lookup.open_lookup()
        read: list[int] = []
        monkeypatch.setattr(SetReader, "shard", lambda self, number: read.append(number) or shard(self, number))
        lookup.by_label(opened)
        lookup.ranked(opened, "mean")
        opened.index.tokens(1)
        lookup.feature_label(opened, 1)
        assert read == []
        examples = lookup.top(opened, 1, 3)
        assert set(read) == {example.shard for example in examples} and len(read) < len(reader.shards)


shard = SetReader.shard


class TestBuilding:
    """Whatever was there before, the same bytes come out, and nothing is encoded twice."""

    def test_grown_shard_by_shard_or_at_once(self, store, tmp_path):
        folder, encoded = store / "toy" / HOOK, []
        write_sae(folder / "saes" / "one", random_sae())
        for number in range(4):
            with writer(folder, spec={"part": number}, shard_rows=64) as part:
                for one in documents(60)[15 * number : 15 * number + 15]:
                    part.append(one)
                part.finish()
            encoded.append(stage.build().encoded)
        rows = [made.rows for made in find_pair(None, None)[0].manifest.passes]
        assert encoded == rows
        index = find_pair(None, None)[1].index_path
        grown = content(index)
        shutil.rmtree(index)
        stage.build()
        assert content(index) == grown and len(grown) > 10

    @pytest.mark.parametrize("after", [1, 4, 9, 14, 18, 21])
    def test_killed_and_resumed(self, store, monkeypatch, after):
        index = make_index(store, 60)
        whole = content(index)
        shutil.rmtree(index)
        replace_file, left = os.replace, [after]

        def dies(source, target):
            left[0] -= str(target).endswith(".h5")
            if left[0] < 0:
                raise KeyboardInterrupt
            replace_file(source, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", dies)
            stage.build()
        progress = Recorded()
        lookup.open_lookup(progress=progress)
        assert content(index) == whole
        assert "is unfinished" in progress.lines[0] and not list(index.rglob("*.partial"))

    def test_levels_of_segments(self):
        assert plan(1) == [SegmentRange(0, 1)]
        assert plan(FANOUT) == [SegmentRange(0, FANOUT)]
        for shards in (7, 100, 400, 36_000):
            ranges = plan(shards)
            assert [one.first for one in ranges] == [0, *(one.last for one in ranges[:-1])]
            assert ranges[-1].last == shards and len(ranges) <= 7 * 6
        assert len(plan(400)) == 8

    def test_blocks_of_any_size_give_the_same(self, store, monkeypatch):
        index = make_index(store, 40)
        whole = content(index)
        shutil.rmtree(index)
        monkeypatch.setattr(merging, "BLOCK", 7)
        stage.build()
        assert values(content(index)) == values(whole)

    def test_two_at_once(self, store):
        """The second waits for the first and finds the work done."""
        from filelock import FileLock

        index = make_index(store, 20)
        shutil.rmtree(index)
        index.mkdir()
        lock, progress = FileLock(index / ".lock"), Recorded()
        lock.acquire()
        progress.on_say = lambda line: lock.release() if "waiting" in line else None
        lookup.open_lookup(progress=progress)
        assert "is missing" in progress.lines[0] and "another process is building" in progress.lines[1]
        assert len(progress.lines) == 2 and (index / "index.json").is_file()

    def test_dense_features_are_encoded_in_small_parts(self, store, monkeypatch):
        from lensae.index import encode

        index = make_index(store, 30)
        whole = content(index)
        shutil.rmtree(index)
        monkeypatch.setattr(encode, "PROBE_ROWS", 10)
        monkeypatch.setattr(encode, "MOST_FIRINGS", 50)
        stage.build()
        assert values(content(index)) == values(whole)


class Recorded:
    """Progress that is kept."""

    def __init__(self):
        self.lines: list[str] = []
        self.done = 0
        self.on_say = lambda line: None

    def start(self, what: str, total: int, unit: str) -> None:
        self.total = total

    def advance(self, count: int, note: str = "") -> None:
        self.done += count

    def expect(self, total: int) -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)
        self.on_say(line)


class TestUpToDate:
    """An index is built when it has to be, says why, and is left alone otherwise."""

    def test_up_to_date_nothing_is_written(self, store, monkeypatch):
        index = make_index(store, 20)
        before = {path: path.stat().st_mtime_ns for path in [index, *index.rglob("*")]}
        (index / ".lock").unlink(missing_ok=True)
        monkeypatch.setattr(stage, "bring_up_to_date", None)
        monkeypatch.setattr(lookup, "bring_up_to_date", None)
        progress = Recorded()
        lookup.top(lookup.open_lookup(progress=progress), 0)
        assert progress.lines == [] and not (index / ".lock").exists()
        for path, modified in before.items():
            if path.name not in (".lock", "index"):
                assert path.stat().st_mtime_ns == modified

    def test_the_set_has_grown(self, store):
        index = make_index(store, 20)
        with writer(store / "toy" / HOOK, spec={"more": 1}) as more:
            for one in documents(60)[40:]:
                more.append(one)
            more.finish()
        progress = Recorded()
        opened = lookup.open_lookup(progress=progress)
        assert "lacks" in progress.lines[0] and progress.done == progress.total == opened.reader.rows
        assert Index(index).rows == opened.reader.rows

    def test_other_weights(self, store):
        index = make_index(store, 20)
        before = Index(index).table()["count"]
        write_sae(index.parent, random_sae(seed=1))
        progress = Recorded()
        opened = lookup.open_lookup(progress=progress)
        assert "other weights" in progress.lines[0]
        assert (opened.index.table()["count"] != before).any() and opened.index.table()["count"].sum() == before.sum()

    def test_another_configuration(self, store):
        index = make_index(store, 20)
        cfg = json.loads((index.parent / "cfg.json").read_text())
        write_json(index.parent / "cfg.json", {**cfg, "k": 3, "metadata": {"command": "another"}})
        progress = Recorded()
        opened = lookup.open_lookup(progress=progress)
        assert "another configuration" in progress.lines[0]
        assert opened.index.table()["count"].sum() <= 3 * opened.index.rows
        write_json(index.parent / "cfg.json", {**cfg, "k": 3, "metadata": {"command": "a third"}})
        assert stage.why_out_of_date(opened.reader, opened.sae) == ""

    def test_the_same_weights_written_again(self, store):
        index = make_index(store, 20)
        weights = index.parent / "sae_weights.safetensors"
        weights.write_bytes(weights.read_bytes())
        progress = Recorded()
        lookup.open_lookup(progress=progress)
        assert progress.lines == []

    def test_a_repaired_shard(self, store):
        index = make_index(store, 60)
        manifest = store / "toy" / HOOK / "manifest.json"
        record = json.loads(manifest.read_text())
        record["shards"][2]["sha256"] = "another"
        manifest.write_text(json.dumps(record))
        progress = Recorded()
        reader = lookup.open_lookup(progress=progress).reader
        assert "have changed" in progress.lines[0] and verify_index(index) == []
        assert stage.why_out_of_date(reader, find_pair(None, None)[1]) == ""

    def test_another_schema(self, store, monkeypatch):
        index = make_index(store, 20)
        (index / "00000.h5").write_bytes(b"a segment of an earlier version")
        record = json.loads((index / "index.json").read_text())
        (index / "index.json").write_text(json.dumps({**record, "schema": 1}))
        progress = Recorded()
        lookup.open_lookup(progress=progress)
        assert "another version" in progress.lines[0] and not (index / "00000.h5").exists()

    @pytest.mark.parametrize("what", ["index.json", "summary.h5", "segments", "rows"])
    def test_what_is_missing_or_cut_short_is_built_again(self, store, what):
        index = make_index(store, 30)
        whole = content(index)
        path = index / what if (index / what).is_file() else sorted((index / what).iterdir())[0]
        path.write_bytes(path.read_bytes()[:-10])
        assert [fault.file for fault in verify_index(index)] == [str(path.relative_to(index))]
        stage.build()
        assert content(index) == whole and verify_index(index) == []
        path.unlink()
        stage.build()
        assert content(index) == whole

    def test_flipped_bits_are_found_and_built_again(self, store):
        index = make_index(store, 30)
        whole = content(index)
        path = sorted(index.glob("segments/*.h5"))[0]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert [fault.what for fault in verify_index(index)] == ["bytes differ from those written"]
        stage.build()
        assert content(index) == whole

    def test_damaged_values_are_not_shown(self, store):
        index = make_index(store, 30)
        opened = lookup.open_lookup()
        for path in index.glob("segments/*.h5"):
            path.write_bytes(b"\0" * path.stat().st_size)
        with pytest.raises(DamagedError, match="cannot be read") as error:
            opened.index.tokens(0)
        assert "lensae index" in error.value.hint

    def test_a_folder_that_cannot_be_written(self, store, monkeypatch):
        index = make_index(store, 20)
        shutil.rmtree(index)

        def refuse(*_arguments, **_options):
            raise PermissionError(13, "Permission denied", str(index))

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(LensaeError, match="cannot be written"):
            lookup.open_lookup()

    def test_an_index_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match="is missing") as error:
            Index(tmp_path / "nowhere")
        assert "lensae index" in error.value.hint
        sae = SaeIdentity(weights_sha256="b", config={})
        assert out_of_date(tmp_path / "nowhere", ["a"], sae) == "is missing"


class TestParts:
    """The arithmetic that the tables are made with."""

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.tuples(st.integers(0, 5), st.floats(2**-120, 2**120, width=32)), max_size=60))
    def test_orders(self, pairs):
        feature = np.array([f for f, _v in pairs], np.int64)
        value = np.array([v for _f, v in pairs], np.float32)
        order = stable_order((feature << 31) | falling_key(value))
        np.testing.assert_array_equal(order, np.lexsort((-value, feature)))
        rank = rank_in_group(np.sort(feature))
        assert rank.tolist() == [sum(one == f for one in sorted(feature)[:i]) for i, f in enumerate(sorted(feature))]

    @given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4)), max_size=10))
    def test_ranges(self, ranges):
        start, length = (np.array([one[i] for one in ranges], np.int64) for i in range(2))
        assert expand_ranges(start, length).tolist() == [s + i for s, n in ranges for i in range(n)]

    @settings(deadline=None)
    @given(st.lists(st.floats(2**-10, 2**17, width=32), min_size=1, max_size=60))
    def test_histogram_bins(self, values):
        value = np.array([*values, *EDGES.astype(np.float32), *np.nextafter(EDGES.astype(np.float32), 0)], np.float32)
        expected = np.clip(np.searchsorted(EDGES, value.astype(np.float64), side="right") - 1, 0, BINS - 1)
        np.testing.assert_array_equal(histogram_bin(value), expected)

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=2, max_size=60))
    def test_area_under_curve(self, pairs):
        """Exact where no two different values share a bin, and with documents in which the feature does not fire."""
        scores = np.array([1.5**s if s else 0.0 for s, _p in pairs], np.float32)
        positive = np.array([p for _s, p in pairs])
        fires = scores > 0
        bins = {
            "feature": np.zeros(fires.sum(), int),
            "label": positive[fires].astype(int),
            "bin": labels.bin_of(scores[fires]),
            "documents": np.ones(fires.sum(), np.uint32),
        }
        count = np.array([(~positive).sum(), positive.sum()])
        area = area_under_curve(labels.combine_bins(bins), np.array([1]), count)[0]
        assert area == pytest.approx(reference.auroc(scores, positive))

    def test_bins_are_narrow(self):
        value = np.sort(np.random.default_rng(0).lognormal(0, 3, 10_000).astype(np.float32))
        bins = labels.bin_of(value)
        assert (np.diff(bins.astype(int)) >= 0).all()
        same = np.diff(bins) == 0
        assert (value[1:][same] < value[:-1][same] * 17 / 16).all()
