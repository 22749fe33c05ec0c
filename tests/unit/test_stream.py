"""The training stream, against a reference that loads everything and permutes it in plain Python."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import HOOK, MODEL, document, documents, write_set
from hypothesis import given, settings
from hypothesis import strategies as st

from lensae.core.errors import DamagedError, UserError
from lensae.core.paths import read_set
from lensae.core.records import CapturedDocument
from lensae.store import stream as module
from lensae.store.reader import Selection, SetReader
from lensae.store.shard import Shard
from lensae.store.stream import RowStream
from lensae.store.writer import SetWriter, header

CHUNK = 16  # stands in for CHUNK_ROWS, so that small sets have many chunks
TARGET_HOOK = "blocks.1.hook_mlp_out"


def target_documents(made: list[CapturedDocument], width: int = 5) -> list[CapturedDocument]:
    """The same tokens with other activations."""
    random = np.random.default_rng(99)
    return [
        replace(d, activations={TARGET_HOOK: random.normal(size=(len(d.token_id), width)).astype(np.float32)})
        for d in made
    ]


def write_target(folder: Path, made: list[CapturedDocument], width: int = 5, dtype: str = "float32") -> SetReader:
    about = header(MODEL, TARGET_HOOK, width, dtype, {})
    with SetWriter(folder, about, {"corpus": "made-up", "seed": 0}, "python main.py collect", shard_rows=90) as writer:
        for one in made:
            writer.append(one)
        writer.finish()
    return SetReader(read_set(folder))


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[SetReader, SetReader]:
    """A set of about 700 rows in 64-row shards, and one of the same tokens that is cut elsewhere."""
    place = tmp_path_factory.mktemp("stream")
    made = documents(60)
    first = SetReader(read_set(write_set(place / "toy" / HOOK, made)))
    second = write_target(place / "toy" / TARGET_HOOK, target_documents(made))
    assert [shard.rows for shard in first.shards] != [shard.rows for shard in second.shards]
    return first, second


@pytest.fixture(scope="module")
def reader(sets) -> SetReader:
    return sets[0]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", CHUNK)


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Every test ends without a thread of the stream and without an open file."""
    yield
    gc.collect()
    assert not left_behind()


def left_behind() -> list:
    threads = [t.name for t in threading.enumerate() if t.name.startswith("lensae-")]
    return threads + [str(n) for n in range(h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE))]


def all_rows(reader: SetReader) -> np.ndarray:
    """The whole set, float32 by numpy."""
    parts = []
    for number in range(len(reader.shards)):
        with h5py.File(reader.path(number)) as file:
            parts.append(file["activations"][...].astype(np.float32))
    return np.concatenate(parts)


def selected_chunks(reader: SetReader, selection: Selection, chunk: int) -> list[list[int]]:
    """The numbers over the whole set of the selected rows, chunk by chunk; chunks without any are left out."""
    found, edge = [], 0
    for number in range(len(reader.shards)):
        with h5py.File(reader.path(number)) as file:
            owner = file["document"][...].tolist()
        chosen = set(selection.indices[number].tolist())
        for first in range(0, len(owner), chunk):
            part = range(first, min(first + chunk, len(owner)))
            found.append([edge + row for row in part if owner[row] in chosen])
        edge += len(owner)
    return [rows for rows in found if rows]


def reference(reader, selection, batch, seed, epoch, shuffle_rows, chunk=CHUNK) -> list[np.ndarray]:
    """Row numbers over the whole set, batch by batch."""
    chunks = selected_chunks(reader, selection, chunk)
    total = sum(len(rows) for rows in chunks)
    windows: dict[int, list[int]] = {}
    before = 0
    for index in np.random.default_rng([seed, epoch]).permutation(len(chunks)).tolist():
        windows.setdefault(before * math.ceil(total / shuffle_rows) // total, []).append(index)
        before += len(chunks[index])
    order: list[int] = []
    for number, members in enumerate(windows.values()):
        rows = [row for index in sorted(members) for row in chunks[index]]
        order += np.random.default_rng([seed, epoch, number + 1]).permutation(rows).tolist()
    return [np.array(order[first : first + batch]) for first in range(0, total, batch)]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.float32 and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@st.composite
def selections(draw):
    """Any documents of the set of these tests: shards and chunks may be left out whole."""
    keep = draw(st.one_of(st.just(range(60)), st.sets(st.integers(0, 59)), st.sets(st.integers(20, 30))))
    return frozenset(keep)


def selection_of(reader: SetReader, keep) -> Selection:
    indices, rows = [], 0
    for number, shard in enumerate(reader.shards):
        with reader.shard(number) as opened:
            lengths = np.diff(opened.read("documents/start"))
        first = shard.first_document
        index = np.array([i for i in range(shard.documents) if first + i in keep], np.int64)
        indices.append(index)
        rows += int(lengths[index].sum())
    return Selection(tuple(indices), rows)


sizes = st.one_of(st.integers(1, 40), st.sampled_from([64, 100, 699, 5000]))


@settings(deadline=None, max_examples=30)
@given(selections(), sizes, sizes, st.integers(0, 2**40), st.integers(0, 5))
def test_an_epoch_is_the_reference_bit_for_bit(reader, keep, batch, shuffle_rows, seed, epoch):
    selection = selection_of(reader, keep)
    stream = RowStream(reader, selection, batch, seed, shuffle_rows)
    order = reference(reader, selection, batch, seed, epoch, shuffle_rows)
    found = list(stream.epoch(epoch))
    rows = all_rows(reader)
    same(found, [rows[part] for part in order])
    assert stream.rows == selection.rows and stream.batches_per_epoch == len(found)
    assert all(len(b) == batch for b in found[:-1]), "only the last batch may be short"
    if found:
        every = np.sort(np.concatenate(order))
        np.testing.assert_array_equal(every, np.sort(np.concatenate(selected_chunks(reader, selection, CHUNK))))
        assert len(np.unique(np.concatenate(found), axis=0)) == selection.rows, "each row once"


@settings(deadline=None, max_examples=8)
@given(selections(), st.integers(17, 200), sizes, st.integers(0, 9))
def test_an_epoch_goes_on_at_any_batch(reader, keep, batch, shuffle_rows, epoch):
    stream = RowStream(reader, selection_of(reader, keep), batch, 3, shuffle_rows)
    whole = list(stream.epoch(epoch))
    for first in range(len(whole) + 2):
        same(list(stream.epoch(epoch, first)), whole[first:])


@settings(deadline=None, max_examples=12)
@given(selections(), sizes, sizes, st.integers(1, 5))
def test_ranks_together_see_what_one_sees(reader, keep, batch, shuffle_rows, group):
    selection = selection_of(reader, keep)
    whole = list(RowStream(reader, selection, batch, 1, shuffle_rows).epoch(2))
    parts = []
    for rank in range(group):
        part = RowStream(reader, selection, batch, 1, shuffle_rows, rank=rank, world_size=group)
        assert part.batches_per_epoch == len(whole)
        parts.append(list(part.epoch(2)))
    for rank, part in enumerate(parts):
        same(part, [b[rank::group] for b in whole])
    again = RowStream(reader, selection, batch, 1, shuffle_rows, rank=group - 1, world_size=group)
    same(list(again.epoch(2, len(whole) // 2)), parts[-1][len(whole) // 2 :])


@settings(deadline=None, max_examples=12)
@given(selections(), sizes, sizes, st.integers(0, 3))
def test_pairs_are_of_the_same_tokens(sets, keep, batch, shuffle_rows, epoch):
    reader, target = sets
    selection = selection_of(reader, keep)
    found = list(RowStream(reader, selection, batch, 5, shuffle_rows, target=target).epoch(epoch))
    order = reference(reader, selection, batch, 5, epoch, shuffle_rows)
    for side, source in enumerate((reader, target)):
        rows = all_rows(source)
        same([pair[side] for pair in found], [rows[part] for part in order])


def test_whole_chunks_and_the_default_window(tmp_path, monkeypatch):
    """5000 rows, with chunks as large as they really are."""
    monkeypatch.undo()
    folder = write_set(tmp_path / "toy" / HOOK, [document(n, 250, 4) for n in range(20)], width=4, shard_rows=1500)
    reader = SetReader(read_set(folder))
    selection = reader.split(0.3, 0).training
    rows = all_rows(reader)
    for size in ({}, {"shuffle_rows": 1500}):
        order = reference(reader, selection, 400, 0, 1, size.get("shuffle_rows", 65536), chunk=1024)
        same(list(RowStream(reader, selection, 400, 0, **size).epoch(1)), [rows[part] for part in order])


def test_epochs_and_seeds_differ_and_shards_mix(reader):
    stream = RowStream(reader, reader.everything(), 128, 0)
    epochs = [np.concatenate(list(stream.epoch(n))) for n in (0, 1)]
    other = np.concatenate(list(RowStream(reader, reader.everything(), 128, 1).epoch(0)))
    assert not np.array_equal(*epochs) and not np.array_equal(epochs[0], other)
    edges = np.cumsum([shard.rows for shard in reader.shards])
    shards = np.searchsorted(edges, reference(reader, reader.everything(), 128, 0, 0, 65536)[0], "right")
    assert len(np.unique(shards)) > len(reader.shards) // 2


def test_windows_are_bounded_and_alike(reader):
    stream = RowStream(reader, reader.everything(), 32, 0, shuffle_rows=100)
    sizes = [int(chunks[:, 2].sum()) for chunks in stream._windows(0)]
    assert sum(sizes) == reader.rows and len(sizes) == math.ceil(reader.rows / 100)
    assert max(sizes) <= 100 + CHUNK and min(sizes) > 100 - 2 * CHUNK


@pytest.fixture
def reads(monkeypatch) -> list[tuple[int, int]]:
    """(shard, first row) of each reading of activations."""
    seen, real = [], Shard.read

    def read(self, name, where=...):
        if name == "activations":
            seen.append((self.number, where.start))
        return real(self, name, where)

    monkeypatch.setattr(Shard, "read", read)
    return seen


def test_what_came_before_is_not_read(reader, reads):
    stream = RowStream(reader, reader.everything(), 50, 0, shuffle_rows=100)
    assert not reads, "documents/start is enough to plan"
    list(stream.epoch(0))
    whole, last = list(reads), stream.batches_per_epoch - 1
    assert len(whole) == len(set(whole)) == len(selected_chunks(reader, reader.everything(), CHUNK))
    reads.clear()
    assert len(list(stream.epoch(0, last))) == 1
    assert reads == whole[-len(reads) :] and len(reads) < len(whole) / 4
    reads.clear()
    assert not list(stream.epoch(0, last + 1)) and not reads
    second = stream._windows(0)[0][:, 2].sum()
    list(RowStream(reader, reader.everything(), 1, 0, shuffle_rows=100).epoch(0, int(second)))
    assert reads == whole[len(stream._windows(0)[0]) :], "a batch at the very start of a window"


def test_the_next_window_is_read_while_a_batch_is_used(reader, reads):
    stream = RowStream(reader, reader.everything(), 20, 0, shuffle_rows=100)
    windows = np.cumsum([len(chunks) for chunks in stream._windows(0)])
    batches = stream.epoch(0)
    next(batches)
    deadline = time.monotonic() + 20
    while len(reads) < windows[1] and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(reads) == windows[1], "the second window and no third"
    batches.close()


def test_two_windows_are_in_memory_at_most(reader, monkeypatch):
    alive, most, real = [], [], RowStream._read_rows

    def rows(self, chunks):
        most.append(sum(ref() is not None for ref in alive))
        arrays = real(self, chunks)
        alive.append(weakref.ref(arrays[0]))
        return arrays

    monkeypatch.setattr(RowStream, "_read_rows", rows)
    for batch in (7, 100, 350):
        for _ in RowStream(reader, reader.everything(), batch, 0, shuffle_rows=100).epoch(0):
            pass
    assert max(most) == 1, "when a window is read, only the one before it is there"


def test_a_batch_is_the_consumers_own(reader):
    stream = RowStream(reader, reader.everything(), 50, 0, shuffle_rows=100)
    expected = list(stream.epoch(0))
    found = []
    for batch in stream.epoch(0):
        found.append(batch.copy())
        batch[...] = np.nan
    same(found, expected)


class TestTheEnd:
    """However the consumer stops, threads and files are gone (`nothing_is_left` looks as well)."""

    @pytest.fixture
    def stream(self, reader, monkeypatch) -> RowStream:
        """A stream whose reading is slow, so that a thread is always at it."""
        real = Shard.read

        def read(self, name, where=...):
            time.sleep(0.02 * (name == "activations"))
            return real(self, name, where)

        monkeypatch.setattr(Shard, "read", read)
        return RowStream(reader, reader.everything(), 20, 0, shuffle_rows=60)

    @pytest.mark.parametrize("taken", [0, 1, 5, 10_000])
    def test_closed(self, stream, taken):
        batches = stream.epoch(0)
        for _, _batch in zip(range(taken), batches, strict=False):
            pass
        batches.close()
        assert not left_behind()

    def test_dropped(self, stream):
        for _batch in stream.epoch(0):
            break
        assert not left_behind()

    @pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
    def test_an_exception_in_the_consumer(self, stream, kind):
        with pytest.raises(kind):
            for _batch in stream.epoch(0):
                raise kind
        gc.collect()
        assert not left_behind()

    def test_interrupted_in_the_stream_itself(self, stream):
        batches = stream.epoch(0)
        next(batches)
        with pytest.raises(KeyboardInterrupt) as held:
            batches.throw(KeyboardInterrupt)
        assert not left_behind(), f"though the traceback of {held.value!r} has the frames"

    def test_an_error_between_the_threads(self, stream, monkeypatch):
        def gather(*_arguments):
            raise MemoryError

        monkeypatch.setattr(module._Window, "gather", gather)
        with pytest.raises(MemoryError) as held:
            next(stream.epoch(0))
        assert not left_behind(), f"though the traceback of {held.value!r} has the frames"

    def test_an_error_in_a_thread_is_the_consumers(self, tmp_path):
        folder = write_set(tmp_path / "toy" / HOOK, documents(60))
        reader = SetReader(read_set(folder))
        stream = RowStream(reader, reader.everything(), 20, 0, shuffle_rows=60)
        reader.path(3).unlink()
        with pytest.raises(DamagedError, match=r"00003\.h5.*missing"):
            list(stream.epoch(0))
        gc.collect()
        assert not left_behind()


class TestOtherTokens:
    """Sets that do not belong together are refused, and the reason is named."""

    def refused(self, tmp_path, reader, made, reason: str) -> None:
        other = write_target(tmp_path / "toy" / TARGET_HOOK, target_documents(made))
        with pytest.raises(UserError, match="do not hold the same tokens") as error:
            RowStream(reader, reader.everything(), 20, 0, target=other)
        assert reason in error.value.what and "--hook " + TARGET_HOOK in error.value.hint

    def test_rows(self, tmp_path, reader):
        self.refused(tmp_path, reader, documents(59), "rows: ")

    def test_a_token(self, tmp_path, reader):
        made = documents(60)
        made[17].token_id[3] += 1
        self.refused(tmp_path, reader, made, "(token_id)")

    def test_a_place_in_the_text(self, tmp_path, reader):
        made = documents(60)
        made[40].position[:] += 1
        self.refused(tmp_path, reader, made, "(position)")

    def test_what_the_model_read(self, tmp_path, reader):
        made = documents(60)
        made[2].input_ids[0] += 1
        self.refused(tmp_path, reader, made, "(documents/input_ids)")

    def test_the_order_of_documents(self, tmp_path, reader):
        made = documents(60)
        self.refused(tmp_path, reader, [made[1], made[0], *made[2:]], "token_id")

    def test_the_ends_of_documents(self, tmp_path, reader):
        """The same columns of tokens, divided otherwise between two documents."""
        made, fields = documents(60), ("token_id", "position", "origin", "char_start", "char_end")
        both = {name: np.concatenate([getattr(made[0], name), getattr(made[1], name)]) for name in fields}
        cut = len(made[0].token_id) - 2
        made[0] = replace(made[0], **{name: values[:cut] for name, values in both.items()})
        made[1] = replace(made[1], **{name: values[cut:] for name, values in both.items()})
        self.refused(tmp_path, reader, made, "(documents/start)")


@pytest.mark.parametrize(
    "numbers",
    [{"batch": 0}, {"shuffle_rows": 0}, {"rank": 2, "world_size": 2}, {"rank": -1}, {"world_size": 0}],
    ids=str,
)
def test_numbers_out_of_range(reader, numbers):
    with pytest.raises(UserError, match="no rows can be drawn"):
        RowStream(reader, reader.everything(), **{"batch": 10, "seed": 0, **numbers})
