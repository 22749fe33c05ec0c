"""The view of a set: one file that looks into all shards."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import document, documents, write_set
from store_helpers import expected, made, opened

from lensae.core.paths import find_set
from lensae.store.schema import ROW_COLUMNS, TEXT_COLUMNS
from lensae.store.view import write_view


class TestView:
    def check(self, path: Path, wanted: dict, found: list) -> None:
        """A process of its own, elsewhere, sees what is in the shards."""
        with h5py.File(path) as file:
            names = [name for name in ROW_COLUMNS if name != "document"]
            for name in ("activations", *names, "documents/input_ids"):
                there, array = file[name], wanted[name.rpartition("/")[2]]
                assert there.is_virtual and there.dtype == array.dtype
                assert all(source.file_name.startswith("shards/0000") for source in there.virtual_sources())
                np.testing.assert_array_equal(there[...], array, err_msg=name)
            for name, array in (("document", "document"), ("documents/start", "document_start")):
                np.testing.assert_array_equal(file[name][...], wanted[array])
            np.testing.assert_array_equal(file["documents/input_start"][...], wanted["input_start"])
            for name in TEXT_COLUMNS:
                texts = file[f"documents/{name}"]
                assert texts.is_virtual and list(texts.asstr()[...]) == [getattr(d, name) for d in found]
            assert (file.attrs["rows"], file.attrs["documents"]) == (len(wanted["document"]), len(found))

    def test_equals_the_shards_also_when_moved(self, written, folder, tmp_path, monkeypatch):
        wanted = expected(written, find_set().manifest.dtype)
        path = write_view(find_set())
        assert path == folder / "view.h5"
        self.check(path, wanted, written)
        folder.rename(tmp_path / "elsewhere")
        monkeypatch.chdir("/")
        self.check(tmp_path / "elsewhere" / "view.h5", wanted, written)

    def test_across_shards(self, written):
        wanted = expected(written, find_set().manifest.dtype)
        with h5py.File(write_view(find_set())) as file:
            np.testing.assert_array_equal(file["activations"][50:200:7, 3], wanted["activations"][50:200:7, 3])
            row = 150
            text = file["documents/text"].asstr()[file["document"][row]]
            one = written[wanted["document"][row]]
            assert text == one.text

    def test_it_is_small(self, folder):
        write_set(folder, [document(n, 500) for n in range(40)], shard_rows=2000)
        path = write_view(find_set())
        assert path.stat().st_size < 0.2 * sum(f.stat().st_size for f in folder.glob("shards/*"))

    def test_made_anew_when_the_set_has_grown(self, folder):
        write_set(folder, made())
        with h5py.File(write_view(find_set())) as file:
            before = len(file["activations"])
        write_set(folder, documents(12), spec={"corpus": "more", "seed": 0})
        with h5py.File(write_view(find_set())) as file:
            assert len(file["activations"]) == find_set().rows > before
            assert file["document"][-1] == 40 + 12 - 1
            assert file["documents/text"].asstr()[-1] == documents(12)[-1].text

    def test_a_shard_that_goes_missing_later_shows(self, folder):
        write_set(folder, made())
        path = write_view(find_set())
        rows = find_set().manifest.shards[0].rows
        (folder / "shards" / "00000.h5").unlink()
        with h5py.File(path) as file:
            assert np.isnan(file["activations"][:rows]).all() and not np.isnan(file["activations"][rows:]).any()
            assert set(file["token_id"][:rows]) == {-1} and set(file["origin"][:rows]) == {255}

    @pytest.mark.parametrize("there", [False, True])
    def test_a_truncated_shard_is_named_and_nothing_changes(self, folder, lensae, there):
        write_set(folder, made())
        if there:
            write_view(find_set())
        path = folder / "shards" / "00001.h5"
        path.write_bytes(path.read_bytes()[:500])
        before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        status, _out, err = lensae("store", "view")
        assert status == 1 and "00001.h5" in err
        assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before

    def test_command(self, folder, lensae):
        write_set(folder, made())
        status, out, _err = lensae("store", "view")
        path, *lines = out.splitlines()
        assert status == 0 and path == str(folder / "view.h5") and len(lines) == 2
        assert opened("\n".join(lines), "text") == made()[0].text
        status, out, _err = lensae("store", "view", "toy", "--json")
        report = json.loads(out)
        assert report["path"] == path and report["rows"] == find_set().rows
        assert lensae("store", "verify")[0] == 0, "the view is no part of the set"
