"""The store: what goes in comes out, at any interruption, and damage is found."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import HOOK, document, documents, write_set, writer

from lensae.core.errors import DamagedError, LensaeError, UserError
from lensae.core.paths import find_set, list_sets, read_set
from lensae.store.reader import SetReader
from lensae.store.verify import verify


def faults(folder: Path) -> list:
    return [fault for _file, found in verify(read_set(folder)) for fault in found]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(folder, dtype):
    made = documents()
    write_set(folder, made, dtype=dtype)
    reader = SetReader(find_set("toy"))
    assert len(reader.shards) > 3 and reader.rows == sum(len(d.token_id) for d in made)
    with_rows, chosen = [d for d in made if len(d.token_id)], reader.everything()
    assert chosen.documents == len(with_rows) == len(made) - 1
    for one, there, rows in zip(with_rows, reader.documents(chosen), reader.document_rows(chosen), strict=True):
        assert (one.text, one.prompt, one.label) == (there.text, there.prompt, there.label)
        np.testing.assert_array_equal(one.input_ids, there.input_ids)
        np.testing.assert_array_equal(one.activations[HOOK].astype(dtype).astype(np.float32), rows)
        with reader.shard(there.shard) as shard:
            for i, row in enumerate(range(*there.rows)):
                span = shard.span(row)
                assert (span.document, span.token_id, span.position) == (there.index, one.token_id[i], one.position[i])
                assert there.text[span.start : span.end] == one.text[2 * i : 2 * i + 2]
                assert span.origin == one.origin[i]
    assert not faults(folder)


def test_shards_are_chunked_and_checksummed(folder):
    write_set(folder, documents())
    with h5py.File(folder / "shards" / "00000.h5") as file:
        assert file["activations"].fletcher32 and file["activations"].chunks[1] == 16
        assert all(file[name].fletcher32 for name in ("token_id", "document", "position", "origin"))


def test_a_document_lies_in_one_shard(folder):
    write_set(folder, [document(n, 50) for n in range(5)], shard_rows=64)
    assert [shard.rows for shard in read_set(folder).manifest.shards] == [100, 100, 50]


@pytest.mark.parametrize("cut", [0, 1, 6, 13, 29, 30])
def test_an_interrupted_pass_ends_in_the_same_bytes(folder, store, cut):
    made = documents()
    write_set(store / "whole" / HOOK, made)
    with writer(folder) as first:
        for one in made[:cut]:
            first.append(one)
    with writer(folder) as second:
        assert not second.complete
        for one in made[second.documents_done :]:
            second.append(one)
        second.finish()
    assert shard_bytes(folder) == shard_bytes(store / "whole" / HOOK)


def test_a_finished_pass_is_not_written_again(folder):
    write_set(folder, documents())
    before = shard_bytes(folder)
    with writer(folder) as again:
        assert again.complete and again.documents_done == 30
    assert shard_bytes(folder) == before


def test_documents_without_a_single_row_are_kept(folder):
    write_set(folder, [document(5, 0), document(6, 0)])
    manifest = read_set(folder).manifest
    assert manifest.passes[0].documents == 2 and not faults(folder)
    with writer(folder) as again:
        assert again.complete and again.documents_done == 2
    with pytest.raises(UserError, match="is empty"):
        SetReader(find_set())


def test_a_second_pass_is_added(folder):
    write_set(folder, documents())
    write_set(folder, documents(10), spec={"corpus": "made-up", "seed": 1})
    manifest = read_set(folder).manifest
    assert len(manifest.passes) == 2 and {shard.pass_number for shard in manifest.shards} == {0, 1}
    assert SetReader(find_set()).rows == sum(one.rows for one in manifest.passes)


def test_other_settings_do_not_fit_the_set(folder):
    write_set(folder, documents())
    with pytest.raises(UserError, match="dtype"):
        writer(folder, dtype="float32")
    with pytest.raises(UserError, match="width"):
        writer(folder, width=32)


def test_one_writer_at_a_time(folder):
    with writer(folder), pytest.raises(LensaeError, match="another process"):
        writer(folder)
    with writer(folder):
        pass


def test_a_full_disk_keeps_whole_shards(folder, monkeypatch):
    made = documents()
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        if "partial" in os.readlink(f"/proc/self/fd/{descriptor}") and "shards" in os.readlink(
            f"/proc/self/fd/{descriptor}"
        ):
            calls.append(descriptor)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), writer(folder) as open_writer:
        for one in made:
            open_writer.append(one)
    assert sorted(p.name for p in (folder / "shards").iterdir()) == ["00000.h5", "00001.h5"]
    assert not faults(folder)
    with writer(folder) as again:
        for one in made[again.documents_done :]:
            again.append(one)
        again.finish()
    assert not faults(folder)


def test_an_unfinished_set_says_how_to_go_on(folder):
    with writer(folder) as open_writer:
        for one in documents():
            open_writer.append(one)
    with pytest.raises(UserError, match="unfinished") as error:
        find_set("toy")
    assert "python main.py collect" in error.value.hint


@pytest.mark.parametrize("keep", [0, 7, 100, 2000])
def test_a_truncated_shard_is_named(folder, keep):
    write_set(folder, documents())
    path = folder / "shards" / "00001.h5"
    path.write_bytes(path.read_bytes()[:keep])
    assert {fault.file for fault in faults(folder)} == {"shards/00001.h5"}
    reader = SetReader(find_set())
    with pytest.raises(DamagedError, match=r"00001\.h5"):
        reader.everything()


def test_a_missing_shard_is_named(folder):
    write_set(folder, documents())
    (folder / "shards" / "00002.h5").unlink()
    assert [(f.file, f.what) for f in faults(folder)] == [("shards/00002.h5", "missing")]
    with pytest.raises(DamagedError, match=r"00002\.h5.*missing"):
        SetReader(find_set()).shard(2)


@pytest.mark.slow
def test_200_flipped_bits_are_all_found(folder, monkeypatch):
    monkeypatch.setattr("lensae.store.verify.PATIENCE_S", 1.0)
    write_set(folder, documents(12), shard_rows=10_000)
    path = folder / "shards" / "00000.h5"
    good = path.read_bytes()
    random = np.random.default_rng(1)
    for _ in range(200):
        bad = bytearray(good)
        place, bit = int(random.integers(len(good))), int(random.integers(8))
        bad[place] ^= 1 << bit
        path.write_bytes(bad)
        assert faults(folder), f"bit {bit} of byte {place}"
    path.write_bytes(good)
    assert not faults(folder)


def test_a_bad_chunk_is_named(folder):
    write_set(folder, [document(n, 500) for n in range(6)], shard_rows=10_000)
    path = folder / "shards" / "00000.h5"
    with h5py.File(path) as file:
        offset = file["activations"].id.get_chunk_info(1).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 5] ^= 1
    path.write_bytes(data)
    assert [f.where for f in faults(folder)] == ["activations, chunk at row 1024"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"passes": 1}', "\x00\xff"])
def test_a_spoiled_manifest(folder, text):
    write_set(folder, documents())
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match="manifest"):
        find_set("toy")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.pop("shards"), "lacks 'shards'"),
        (lambda m: m.update(width="16"), "has width '16'"),
        (lambda m: m.update(model="toy"), "has model 'toy'"),
        (lambda m: m["model"].pop("weights_sha256"), "model lacks 'weights_sha256'"),
        (lambda m: m.update(passes=["one"]), r"passes\[0\] is not an object"),
        (lambda m: m["passes"][0].update(completed_at=7), r"passes\[0\] has completed_at '7'"),
        (lambda m: m["shards"][1].pop("sha256"), r"shards\[1\] lacks 'sha256'"),
        (lambda m: m["shards"][1].update(rows=-3), r"shards\[1\] has rows '-3'"),
        (lambda m: m["shards"][1].update(file="../../other.h5"), r"shards\[1\] has the file '../../other.h5'"),
        (lambda m: m["shards"].append(m["shards"][0]), "has the file '00000.h5' again"),
        (lambda m: m["shards"][0].update({"pass": 3}), "is of pass 3, which does not exist"),
        (lambda m: m.update(schema=99), "newer lensae"),
    ],
)
def test_a_manifest_edited_by_hand(folder, edit, message):
    write_set(folder, documents())
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match=message):
        read_set(folder)


def test_a_newer_schema_is_refused(folder):
    write_set(folder, documents())
    with h5py.File(folder / "shards" / "00000.h5", "a") as file:
        file.attrs["schema"] = 99
    with pytest.raises(DamagedError, match="newer"):
        SetReader(find_set()).shard(0)


def test_names(store):
    for name in ("a--b", "c"):
        write_set(store / name / HOOK, documents(3))
    assert find_set(f"a--b/{HOOK}").name == find_set("a/b").name == f"a--b/{HOOK}"
    assert find_set().name == f"c/{HOOK}", "the one finished last"
    assert find_set(str(store / "a--b" / HOOK)).name == f"a--b/{HOOK}"
    with pytest.raises(UserError, match="several"):
        find_set(HOOK)
    with pytest.raises(UserError, match="no activation set"):
        find_set("nothing")
    assert len(list_sets()) == 2


class TestReader:
    @pytest.fixture
    def reader(self, folder) -> SetReader:
        write_set(folder, documents(60))
        return SetReader(find_set())

    def test_a_prompt_is_on_one_side_of_the_split(self, reader):
        split = reader.split(0.25, 4)
        training, held = split.training, split.heldout
        prompts = [{d.prompt for d in reader.documents(side)} for side in (training, held)]
        assert prompts[1] and not prompts[0] & prompts[1]
        assert len(prompts[1]) == round(0.25 * len(prompts[0] | prompts[1]))
        assert training.documents + held.documents == reader.everything().documents
        assert training.rows + held.rows == reader.rows

        def texts(seed: int) -> list[str]:
            return [d.text for d in reader.documents(reader.split(0.25, seed).heldout)]

        assert texts(4) == texts(4) != texts(5)

    def test_held_out_prompts_stay_held_out_when_the_set_grows(self, reader, folder):
        split = reader.split(0.25, 4)
        before = [{d.prompt for d in reader.documents(side)} for side in (split.training, split.heldout)]
        write_set(folder, [document(n, 9) for n in range(200, 260)], spec={"corpus": "more", "seed": 0})
        grown = SetReader(find_set())
        again = grown.split_at(split.limit, 4)
        after = [{d.prompt for d in grown.documents(side)} for side in (again.training, again.heldout)]
        assert before[0] < after[0] and before[1] <= after[1] and not after[0] & after[1]

    @pytest.mark.parametrize("count", [1, 7, 59, 1000])
    def test_a_spread_of_documents(self, reader, count):
        everything = reader.everything()
        some = everything.spread(count)
        assert some.documents == min(count, everything.documents)
        for part, whole in zip(some.indices, everything.indices, strict=True):
            assert set(part) <= set(whole)
        assert sum(len(part) > 0 for part in some.indices) >= min(count, len(reader.shards)) * 0.6
