"""How a shard is made: the same bytes always, floats rounded as numpy rounds them, compressed ones as good as any."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import HOOK, document, documents, write_set

from lensae.core.errors import DamagedError, UserError
from lensae.core.paths import find_set, read_set
from lensae.store import shard as shards
from lensae.store.export import export
from lensae.store.memory_file import MemoryFile
from lensae.store.reader import SetReader
from lensae.store.schema import CHUNK_ROWS, COMPRESSIONS, NUL, chunk_rows, content_digest
from lensae.store.shard import Shard, convert, image
from lensae.store.verify import verify
from lensae.store.view import write_view

ROOT = Path(__file__).resolve().parents[2]
ATTRS = {"pass": 0, "first_document": 0}
LAYOUTS = [None, *COMPRESSIONS]
FLETCHER32 = 3


@pytest.fixture
def compressed(monkeypatch):
    """Every shard is compressed, whatever the writer asks for; gives a function that takes the name."""
    real = shards.image

    def always(compress: str) -> None:
        monkeypatch.setattr(shards, "image", lambda documents, hook, dtype, attrs, *_: real(
            documents, hook, dtype, attrs, compress))  # fmt: skip

    return always


def made(found, dtype: str = "float16", compress: str | None = None) -> bytes:
    return bytes(image(found, HOOK, dtype, ATTRS, compress)[0])


def opened(data: bytes, path: Path) -> Shard:
    path.write_bytes(data)
    return Shard(path)


def faults(folder: Path) -> list:
    return [fault for _file, found in verify(read_set(folder)) for fault in found]


def filters(data: h5py.Dataset) -> list[int]:
    layout = data.id.get_create_plist()
    return [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]


def half_values() -> np.ndarray:
    """float32: every float16, what lies half way between neighbours, a step to either side of that, and at random."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = np.sort(halves[np.isfinite(halves)]).astype(np.float32)
    middle = (halves[1:].astype(np.float64) + halves[:-1]) / 2
    middle = middle.astype(np.float32)
    beside = [np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))]
    random = np.random.default_rng(0).integers(0, 2**32, 400_000, dtype=np.uint32).view(np.float32)
    random = random[np.abs(random) < 65_000]  # neither NaN nor above what float16 holds
    return np.concatenate([halves, middle, *beside, random])


class TestConvert:
    def test_rounds_as_numpy_does(self):
        values = half_values()
        values = values[: len(values) // 8 * 8].reshape(-1, 8)
        found = np.full(values.shape, 7, np.float16)
        convert(values, found)
        np.testing.assert_array_equal(found.view(np.uint16), values.astype(np.float16).view(np.uint16))

    def test_the_range_of_float32_outside_float16(self):
        values = np.array([[np.inf, -np.inf, 1e38, 65_519.99, 65_520.0, -0.0, 1e-45, 2.0**-25]], np.float32)
        found = np.empty(values.shape, np.float16)
        convert(values, found)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(found.view(np.uint16), values.astype(np.float16).view(np.uint16))

    @pytest.mark.parametrize("width", [1, 3, 576, 40_000])
    @pytest.mark.parametrize("rows", [0, 1, 200])
    def test_every_width_and_source(self, width, rows):
        values = np.random.default_rng(0).normal(size=(2 * rows, width)).astype(np.float32)
        fixed = values.copy()
        fixed.flags.writeable = False
        for source in (values[::2], fixed[:rows], values.T.copy().T[:rows], values[:rows].astype(np.float16)):
            found = np.full(source.shape, 7, np.float16)
            convert(source, found)
            np.testing.assert_array_equal(found, source.astype(np.float16))

    def test_never_goes_parallel(self, monkeypatch):
        """torch's grain is 32,768 elements: a call of that size or less stays in its thread."""
        seen = []
        real = torch.Tensor.copy_
        monkeypatch.setattr(torch.Tensor, "copy_", lambda a, b: seen.append(a.numel()) or real(a, b))
        convert(np.ones((1000, 576), np.float32), np.empty((1000, 576), np.float16))
        assert sum(seen) == 576_000 and max(seen) <= 32_768

    def test_the_same_bytes_without_torch(self, monkeypatch):
        with_torch = made(documents())
        monkeypatch.delitem(sys.modules, "torch")
        assert made(documents()) == with_torch


class TestMemoryFile:
    def test_does_what_a_file_does(self):
        """20,000 random operations, against io.BytesIO (whose truncate makes nothing longer)."""
        random = np.random.default_rng(0)
        ours, plain = MemoryFile(10), io.BytesIO()
        for _ in range(20_000):
            place, size = int(random.integers(300_000)), int(random.integers(5000))
            assert ours.seek(place) == plain.seek(place)
            match int(random.integers(4)):
                case 0:
                    data = random.bytes(size)
                    assert ours.write(data) == plain.write(data)
                case 1:
                    targets = bytearray(size), bytearray(size)
                    assert ours.readinto(targets[0]) == plain.readinto(targets[1])
                    assert targets[0] == targets[1]
                case 2:
                    assert ours.read(size) == plain.read(size)
                case 3 if size < 20:
                    end = len(plain.getvalue())
                    plain.truncate(place)
                    if place > end:
                        plain.seek(end)
                        plain.write(bytes(place - end))
                    ours.truncate(place)
                    assert ours.seek(place) == plain.seek(place)
            assert ours.tell() == plain.tell()
            assert ours.seek(0, os.SEEK_END) == plain.seek(0, os.SEEK_END)
        assert bytes(ours.content()) == plain.getvalue() and len(ours.content()) > 200_000

    def test_grows_past_what_was_guessed(self, tmp_path):
        """Texts that outweigh the rows by far."""
        found = [replace(document(n, 2), text="word " * 20_000) for n in range(40)]
        with opened(made(found), tmp_path / "a.h5") as shard:
            assert shard.texts("text") == [one.text for one in found]
            assert shard.digest() == shard.attrs["digest"]


class TestImage:
    @pytest.mark.parametrize("compress", LAYOUTS)
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_holds_what_the_plain_way_gives(self, dtype, compress, tmp_path):
        found = [document(n, rows) for n, rows in enumerate([700, 0, 900, 3, 1024, 1])]
        with opened(made(found, dtype, compress), tmp_path / "a.h5") as shard:
            expected = np.concatenate([one.activations[HOOK] for one in found]).astype(dtype)
            there = shard.read("activations")
            assert there.dtype == expected.dtype
            np.testing.assert_array_equal(there, expected)
            for name in ("token_id", "position", "origin", "char_start", "char_end"):
                np.testing.assert_array_equal(shard.read(name), np.concatenate([getattr(one, name) for one in found]))
            assert shard.read("documents/start").tolist() == [0, 700, 700, 1600, 1603, 2627, 2628]
            assert shard.digest() == shard.attrs["digest"]

    def test_the_digest_is_of_the_content_alone(self, tmp_path):
        digests = set()
        for compress in LAYOUTS:
            with opened(made(documents(), "float32", compress), tmp_path / "a.h5") as shard:
                digests.add(shard.attrs["digest"])
        assert len(digests) == 1

    @pytest.mark.parametrize("compress", LAYOUTS)
    def test_threads_make_the_same_bytes_at_once(self, compress):
        found = [document(n, 400, 64) for n in range(12)]
        expected = made(found, "float16", compress)
        with ThreadPoolExecutor(4) as pool:
            made_at_once = [pool.submit(made, found, "float16", compress) for _ in range(12)]
            assert all(one.result() == expected for one in made_at_once)

    @pytest.mark.parametrize("compress", LAYOUTS)
    def test_checksums_are_over_the_compressed_bytes(self, compress, tmp_path):
        with opened(made([document(0, 500)], "float32", compress), tmp_path / "a.h5") as shard:
            assert filters(shard.file["activations"])[-1] == FLETCHER32
            assert (len(filters(shard.file["activations"])) > 1) == bool(compress)
            assert filters(shard.file["token_id"]) == [FLETCHER32]

    @pytest.mark.parametrize("compress", COMPRESSIONS)
    def test_compressed_is_smaller(self, compress):
        found = [document(n, 500, 64) for n in range(8)]
        assert len(made(found, "float32", compress)) < 0.93 * len(made(found, "float32"))

    @pytest.mark.parametrize("compress", LAYOUTS)
    def test_corner_cases(self, compress, tmp_path):
        found = [document(5, 0), replace(document(6, 4), text="a\0b" * 9, label=""), replace(document(7, 0), text="")]
        for some, rows in ((found, 4), (found[:1], 0)):
            with opened(made(some, "float16", compress), tmp_path / "a.h5") as shard:
                assert shard.rows == rows and shard.n_documents == len(some)
                assert shard.read("activations").shape == (rows, 16)
                assert shard.texts("text") == [one.text.replace("\0", NUL) for one in some]
                assert shard.digest() == shard.attrs["digest"]

    def test_an_unknown_compression(self):
        with pytest.raises(UserError, match="no compression named 'zst'") as error:
            made(documents(), "float16", "zst")
        assert "zstd" in error.value.hint


class TestChunks:
    @pytest.mark.parametrize("width", [1, 16, 576, 768, 2304, 4096, 16_384])
    @pytest.mark.parametrize("size", [2, 4])
    def test_fit_what_is_read_at_once(self, width, size):
        rows = chunk_rows(width * size)
        assert CHUNK_ROWS % rows == 0 and rows * width * size <= 2**20
        assert rows == CHUNK_ROWS or 2 * rows * width * size > 2**20

    def test_a_row_above_the_limit(self):
        assert chunk_rows(2**21) == 1

    def test_are_on_disk_as_they_should(self, tmp_path):
        with opened(made([document(0, 1500, 576)], "float16"), tmp_path / "a.h5") as shard:
            assert shard.file["activations"].chunks == (512, 576)

    def test_other_chunks_are_read_as_well(self, folder):
        """A set whose chunks have another size than those that are written now."""
        write_set(folder, [document(n, 300, 64) for n in range(8)], shard_rows=10_000, width=64)
        chosen = SetReader(find_set()).everything()
        expected = list(SetReader(find_set()).document_rows(chosen))
        path = folder / "shards" / "00000.h5"
        with h5py.File(path, "a") as file:
            data = file["activations"][...]
            assert file["activations"].chunks != (700, 64)
            del file["activations"]
            file.create_dataset("activations", data=data, chunks=(700, 64), fletcher32=True)
        listed(folder, path)
        reader = SetReader(find_set())
        assert not faults(folder)
        for a, b in zip(expected, reader.document_rows(chosen), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.concatenate(list(reader.chunks(0))), np.concatenate(expected))


def listed(folder: Path, path: Path) -> None:
    """Let the manifest say what the shard at `path` is now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(one for one in manifest["shards"] if one["file"] == path.name)
    data = path.read_bytes()
    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("compress", COMPRESSIONS)
class TestCompressedSets:
    @pytest.fixture(autouse=True)
    def _compress(self, compress, compressed):
        compressed(compress)

    def is_compressed(self, folder: Path) -> bool:
        with h5py.File(folder / "shards" / "00000.h5") as file:
            return len(filters(file["activations"])) > 1

    def test_60_flipped_bits_are_all_found(self, folder, monkeypatch):
        monkeypatch.setattr("lensae.store.verify.PATIENCE_S", 1.0)
        write_set(folder, documents(12), shard_rows=10_000)
        assert self.is_compressed(folder) and not faults(folder)
        path = folder / "shards" / "00000.h5"
        good = path.read_bytes()
        random = np.random.default_rng(2)
        for _ in range(60):
            bad = bytearray(good)
            place, bit = int(random.integers(len(good))), int(random.integers(8))
            bad[place] ^= 1 << bit
            path.write_bytes(bad)
            assert faults(folder), f"bit {bit} of byte {place}"
        path.write_bytes(good)
        assert not faults(folder)

    def test_a_bad_chunk_is_named_and_nothing_else(self, folder):
        write_set(folder, [document(n, 500) for n in range(6)], shard_rows=10_000)
        path = folder / "shards" / "00000.h5"
        with h5py.File(path) as file:
            chunk = file["activations"].id.get_chunk_info(1)
        good = path.read_bytes()
        random = np.random.default_rng(3)
        for place in [0, chunk.size - 1, *random.integers(0, chunk.size, 20).tolist()]:
            data = bytearray(good)
            data[chunk.byte_offset + place] ^= 1 << int(random.integers(8))
            path.write_bytes(data)
            assert [(f.where, f.what) for f in faults(folder)] == [
                ("activations, chunk at row 1024", "checksum mismatch")
            ]
        with pytest.raises(DamagedError, match=r"00000\.h5"), SetReader(find_set()).shard(0) as shard:
            shard.read("activations")

    def test_is_read_by_document_and_by_chunk(self, folder):
        found = [document(n, 500) for n in range(12)]
        write_set(folder, found, shard_rows=2500)
        reader = SetReader(find_set())
        assert self.is_compressed(folder) and len(reader.shards) == 3
        for one, rows in zip(found, reader.document_rows(reader.everything()), strict=True):
            np.testing.assert_array_equal(rows, one.activations[HOOK].astype(np.float16).astype(np.float32))
        by_chunk = np.concatenate([chunk for number in range(3) for chunk in reader.chunks(number)])
        np.testing.assert_array_equal(by_chunk, np.concatenate(list(reader.document_rows(reader.everything()))))

    def test_the_view(self, folder):
        write_set(folder, documents(40))
        path = write_view(find_set())
        reader = SetReader(find_set())
        expected = np.concatenate(list(reader.document_rows(reader.everything())))
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["activations"][...].astype(np.float32), expected)

    @pytest.mark.parametrize("name", ["all.npz", "all.safetensors", "folder"])
    def test_export(self, folder, tmp_path, name):
        write_set(folder, documents(40), dtype="float32")
        reader = SetReader(find_set())
        expected = np.concatenate(list(reader.document_rows(reader.everything())))
        target = tmp_path / name
        export(find_set(), str(target))
        np.testing.assert_array_equal(exported(target), expected)

    def test_repair_gives_the_same_bytes(self, lensae, store, model_dir):
        arguments = ["collect", model_dir("llama"), "--corpus", "probes", "--max-new-tokens", 9, "--shard-rows", 60]
        assert lensae(*arguments)[0] == 0
        shards_of = next(store.glob("tiny-llama/*/shards"))
        assert self.is_compressed(shards_of.parent)
        good = {path.name: path.read_bytes() for path in shards_of.iterdir()}
        bad = bytearray(good["00001.h5"])
        bad[len(bad) // 2] ^= 1
        (shards_of / "00001.h5").write_bytes(bad)
        assert lensae("store", "verify")[0] == 1
        status, out, err = lensae("store", "repair", "--json")
        assert status == 0, err
        assert [one["same"] for one in json.loads(out)["repaired"]] == [True]
        assert {path.name: path.read_bytes() for path in shards_of.glob("*.h5")} == good


def exported(target: Path) -> np.ndarray:
    """The activations of an export, whatever its format."""
    if target.suffix == ".npz":
        return np.load(target)["activations"]
    if target.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(target)["activations"]
    from datasets import load_from_disk

    return np.array(load_from_disk(target / "rows")["activation"][:], np.float32)


def test_a_filter_that_nobody_has(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    path.write_bytes(made(documents(), "float16", "zstd"))
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code != 32015)
    with pytest.raises(DamagedError, match=r"a\.h5.*32015"):
        Shard(path)


def test_the_digest_tells_arrays_apart():
    arrays = {"activations": np.zeros((2, 3), np.float32), "token_id": np.arange(2, dtype=np.int32)}
    texts = {"documents/text": ["ab", "c"]}
    known = content_digest(arrays, texts)
    others = [
        content_digest({**arrays, "activations": arrays["activations"].reshape(3, 2)}, texts),
        content_digest({**arrays, "activations": arrays["activations"].astype(np.float16)}, texts),
        content_digest({**arrays, "token_id": arrays["token_id"][::-1]}, texts),
        content_digest(arrays, {"documents/text": ["a", "bc"]}),
    ]
    assert len({known, *others}) == 5 and known == content_digest(dict(reversed(arrays.items())), texts)
