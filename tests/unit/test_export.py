"""A set in other formats."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
from helpers import HOOK, dead_pid, document, documents, write_set, writer
from store_helpers import expected, made, opened, same

from lensae.core.durable import new_file
from lensae.core.errors import DamagedError, UserError
from lensae.core.paths import find_set
from lensae.store.export import export, format_of
from lensae.store.schema import ROW_COLUMNS, TEXT_COLUMNS

ROOT = Path(__file__).resolve().parents[2]
FORMATS = (".npz", ".safetensors", "")


class TestFiles:
    """.npz and .safetensors: the same arrays."""

    def test_npz(self, written, tmp_path):
        entry, target = find_set(), tmp_path / "new" / "set.npz"
        lines = export(entry, str(target))
        with np.load(target, allow_pickle=False) as file:
            found = dict(file)
        about = json.loads(str(found.pop("about")))
        assert about["hook"] == HOOK and about["model"] == "toy"
        same(found, expected(written, entry.manifest.dtype))
        assert opened(lines, "texts") == [d.text for d in written]

    def test_safetensors(self, written, tmp_path):
        entry, target = find_set(), tmp_path / "set.safetensors"
        lines = export(entry, str(target))
        same(safetensors.numpy.load_file(target), expected(written, entry.manifest.dtype))
        with safetensors.safe_open(target, "np") as file:
            assert json.loads(file.metadata()["about"])["set"] == f"toy/{HOOK}"
        assert opened(lines, "texts") == [d.text for d in written]

    def test_the_libraries_own_writers_say_the_same(self, written, tmp_path):
        """What is streamed is, array by array and offset by offset, what the whole written from memory is."""
        entry, wanted = find_set(), expected(written, find_set().manifest.dtype)
        for ending in (".npz", ".safetensors"):
            export(entry, str(tmp_path / f"set{ending}"))
        np.savez(tmp_path / "plain.npz", **wanted)
        with np.load(tmp_path / "plain.npz") as plain, np.load(tmp_path / "set.npz") as streamed:
            for name in wanted:
                assert plain.zip.read(f"{name}.npy") == streamed.zip.read(f"{name}.npy"), name
        plain, streamed = safetensors.numpy.save(wanted), (tmp_path / "set.safetensors").read_bytes()
        for data in (plain, streamed):
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            for name, array in wanted.items():
                start, end = header[name]["data_offsets"]
                assert data[8 + size + start : 8 + size + end] == array.tobytes()
                assert (8 + size + start) % array.dtype.itemsize == 0, f"{name} is not aligned"

    def test_the_same_set_is_the_same_file(self, written, tmp_path):
        for ending in (".npz", ".safetensors"):
            one, other = (tmp_path / f"{name}{ending}" for name in "ab")
            export(find_set(), str(one))
            export(find_set(), str(other))
            assert one.read_bytes() == other.read_bytes()

    @pytest.mark.slow
    @pytest.mark.parametrize("ending", FORMATS)
    def test_memory_does_not_grow_with_the_set(self, store, tmp_path, ending):
        found = [document(n, 64, width=512) for n in range(160)]
        write_set(store / "small" / HOOK, found[:16], width=512, shard_rows=256)
        write_set(store / "large" / HOOK, found, width=512, shard_rows=256)
        peaks = []
        for name in ("small", "small", "large"):  # the first one imports what it needs
            target = tmp_path / f"set{len(peaks)}{ending}"
            tracemalloc.start()
            export(find_set(name), str(target))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        size = 160 * 64 * 512 * 2
        assert peaks[2] < peaks[1] + size / 8 and peaks[2] < size / 4, peaks


class TestDataset:
    @pytest.fixture
    def target(self, written, tmp_path) -> Path:
        export(find_set(), f"{tmp_path}/set/")
        return tmp_path / "set"

    def test_rows(self, target, written):
        from datasets import List, Value, load_from_disk

        dtype = find_set().manifest.dtype
        wanted = expected(written, dtype)
        rows = load_from_disk(target / "rows")
        assert rows.features["activation"] == List(Value(dtype), length=16)
        assert str(rows.data.schema.field("activation").type).startswith("fixed_size_list")
        found = rows.with_format("numpy", dtype=np.dtype(dtype))[:]
        np.testing.assert_array_equal(found["activation"], wanted["activations"])
        for name, kind in ROW_COLUMNS.items():
            assert rows[name][:] == wanted[name].tolist(), name
            assert rows.features[name].dtype == ("int64" if name == "document" else np.dtype(kind).name)
        spans = [(d.text, a, b) for d in written for a, b in zip(d.char_start, d.char_end, strict=True)]
        assert rows["token"][:] == [text[a:b] for text, a, b in spans]

    def test_documents(self, target, written):
        from datasets import load_from_disk

        found = load_from_disk(target / "documents")
        assert len(found) == len(written) == 40
        for there, one in zip(found, written, strict=True):
            assert [there[name] for name in TEXT_COLUMNS] == [getattr(one, name) for name in TEXT_COLUMNS]
            assert there["input_ids"] == one.input_ids.tolist() and there["rows"] == len(one.token_id)
        assert found["first_row"][:] == expected(written, "float32")["document_start"][:-1].tolist()

    def test_both_at_once_and_worked_with(self, target, written):
        from datasets import load_from_disk

        found = load_from_disk(target)
        rows, texts = found["rows"], found["documents"]["text"][:]
        some = rows.filter(lambda row: row["origin"] == 1, keep_in_memory=True).shuffle(seed=0).select(range(50))
        for row in some:
            assert texts[row["document"]][row["char_start"] : row["char_end"]] == row["token"]

    def test_saved_again_by_the_library(self, target, tmp_path):
        """Its files are those the library writes: the same names and keys, and the same table read back."""
        from datasets import load_from_disk

        for part in ("rows", "documents"):
            there = load_from_disk(target / part)
            shards = len(list((target / part).glob("*.arrow")))
            there.save_to_disk(tmp_path / part, num_shards=shards)
            assert sorted(os.listdir(tmp_path / part)) == sorted(os.listdir(target / part))
            for name in ("state.json", "dataset_info.json"):
                ours, theirs = (json.loads((place / part / name).read_text()) for place in (target, tmp_path))
                assert ours.keys() == theirs.keys()
            again = load_from_disk(tmp_path / part)
            assert again.features == there.features and again.data.table.equals(there.data.table)


class TestRefusals:
    def test_the_ending_is_the_format(self):
        assert [format_of(to) for to in ("a.npz", "b/a.SAFETENSORS", "a", "a.1/")] == [
            "npz",
            "safetensors",
            "dataset",
            "dataset",
        ]
        with pytest.raises(UserError, match=r"'\.csv'") as error:
            format_of("set.csv")
        assert ".npz, .safetensors" in error.value.hint and "set.csv/" in error.value.hint

    @pytest.mark.parametrize("ending", FORMATS)
    @pytest.mark.parametrize("there", ["file", "folder", "link"])
    def test_what_is_there_stays(self, folder, lensae, tmp_path, ending, there):
        write_set(folder, made())
        target = tmp_path / f"set{ending}"
        {"file": target.touch, "folder": target.mkdir, "link": lambda: target.symlink_to("nowhere")}[there]()
        status, _out, err = lensae("store", "export", "--to", target)
        assert status == 2 and "exists already" in err
        assert target.is_symlink() or (target.stat().st_size == 0 if there == "file" else not list(target.iterdir()))

    @pytest.mark.parametrize("ending", FORMATS)
    def test_what_comes_into_being_meanwhile_stays(self, folder, tmp_path, ending):
        write_set(folder, made())
        target = tmp_path / "out" / f"set{ending}"

        def advance(_rows: int) -> None:
            target.write_text("somebody else's")

        with pytest.raises(UserError, match="exists already"):
            export(find_set(), str(target), advance)
        assert target.read_text() == "somebody else's" and os.listdir(target.parent) == [target.name]

    @pytest.mark.parametrize("ending", FORMATS)
    def test_a_truncated_shard_is_named_and_nothing_is_left(self, folder, lensae, tmp_path, ending):
        write_set(folder, made())
        path = folder / "shards" / "00002.h5"
        path.write_bytes(path.read_bytes()[:2000])
        (tmp_path / "out").mkdir()
        status, out, err = lensae("store", "export", "--to", tmp_path / "out" / f"set{ending}")
        assert status == 1 and "00002.h5" in err and not out
        assert not list((tmp_path / "out").iterdir())

    @pytest.mark.parametrize("ending", FORMATS)
    def test_a_bad_chunk_halfway_leaves_nothing(self, folder, tmp_path, ending):
        write_set(folder, made())
        path = folder / "shards" / "00003.h5"
        with h5py.File(path) as file:
            offset = file["activations"].id.get_chunk_info(0).byte_offset
        data = bytearray(path.read_bytes())
        data[offset + 5] ^= 1
        path.write_bytes(data)
        seen: list[int] = []
        (tmp_path / "out").mkdir()
        with pytest.raises(DamagedError, match=r"00003\.h5"):
            export(find_set(), str(tmp_path / "out" / f"set{ending}"), seen.append)
        assert sum(seen) == sum(shard.rows for shard in find_set().manifest.shards[:3])
        assert not list((tmp_path / "out").iterdir())

    def test_shards_that_hold_too_little(self, folder, tmp_path):
        """A column shorter than the rows would shift everything that follows it in the file."""
        write_set(folder, made())
        with h5py.File(folder / "shards" / "00001.h5", "a") as file:
            short = file["origin"][:-1]
            del file["origin"]
            file["origin"] = short
        for ending in (".npz", ".safetensors"):
            with pytest.raises(DamagedError, match="do not hold"):
                export(find_set(), str(tmp_path / f"set{ending}"))
        assert [path.name for path in tmp_path.iterdir()] == ["store"]

    def test_leftovers_of_a_killed_export_are_cleared(self, folder, tmp_path):
        write_set(folder, made())
        left = tmp_path / f".other.npz.{dead_pid()}.partial"
        left.write_text("half")
        export(find_set(), str(tmp_path / "set.npz"))
        assert not left.exists()


def test_a_large_file_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "file"
    with new_file(target) as partial:
        partial.write_text("one")
        assert not target.exists()
    with pytest.raises(KeyboardInterrupt), new_file(target) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(FileExistsError), new_file(target, keep=True) as partial:
        partial.write_text("two")
    assert target.read_text() == "one" and os.listdir(target.parent) == ["file"]
    with new_file(target) as partial:
        partial.write_text("two")
    assert target.read_text() == "two"


class TestCommands:
    def test_export(self, folder, lensae, tmp_path):
        write_set(folder, made())
        for ending, kind in ((".npz", "npz"), (".safetensors", "safetensors"), ("", "dataset")):
            status, out, err = lensae("store", "export", "--to", tmp_path / f"one{ending}")
            assert status == 0, err
            first, *lines = out.splitlines()
            assert first.startswith(f"{tmp_path}/one{ending}") and kind in first and "40 documents" in first
            assert "exporting" in err and f"toy/{HOOK}" in err
            if ending:
                assert opened("\n".join(lines), "texts") == [d.text for d in made()]
            else:
                assert len(opened("\n".join(lines), "rows")) == find_set().rows
            status, out, _err = lensae("store", "export", "toy", "--to", tmp_path / f"two{ending}", "--json")
            report = json.loads(out)
            assert report["rows"] == find_set().rows and report["format"] == kind and report["bytes"] > 10_000

    def test_nothing_to_export(self, folder, lensae, tmp_path):
        assert lensae("store", "export", "--to", tmp_path / "set.npz")[0] == 2
        with writer(folder) as open_writer:
            for one in documents():
                open_writer.append(one)
        status, _out, err = lensae("store", "export", "toy", "--to", tmp_path / "set.npz")
        assert status == 2 and "unfinished" in err
        assert lensae("store", "export", "toy")[0] == 2

    @pytest.mark.parametrize("command", ["view", "export", "remove"])
    def test_help(self, command, lensae):
        status, out, _err = lensae("store", command, "--help")
        assert status == 0 and "Examples" in out and "--json" in out
