"""Taking a set away."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
from helpers import HOOK, documents, write_set, writer
from store_helpers import made

from lensae.core.locks import FolderLock
from lensae.core.paths import find_set, list_sets


class TestRemove:
    @pytest.fixture
    def answer(self, monkeypatch):
        """A terminal at which `answer(line)` is typed."""

        def give(line: str) -> None:
            read, write = os.openpty()
            os.write(write, f"{line}\n".encode())
            monkeypatch.setattr(sys, "stdin", os.fdopen(read))

        return give

    def test_yes(self, folder, lensae, store):
        write_set(folder, made())
        write_set(store / "toy" / "blocks.2.hook_resid_post", documents(4))
        (folder / "saes" / "topk-1").mkdir(parents=True)
        status, out, err = lensae("store", "remove", f"toy/{HOOK}", "--yes")
        assert status == 0 and "removed" in out
        assert "MiB" in err and "SAEs topk-1" in err and f"{sum(len(d.token_id) for d in made()):,} rows" in err
        assert os.listdir(store / "toy") == ["blocks.2.hook_resid_post"]
        assert lensae("store", "remove", "toy", "--yes")[0] == 0
        assert store.is_dir() and not list(store.iterdir()), "the model's folder goes with its last set"

    def test_json(self, folder, lensae):
        write_set(folder, made())
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        status, out, _err = lensae("store", "remove", "toy", "--yes", "--json")
        report = json.loads(out)
        assert status == 0 and report["removed"] and report["set"] == f"toy/{HOOK}" and report["bytes"] == size
        assert not folder.exists()

    def test_without_a_terminal_it_needs_yes(self, folder, lensae, monkeypatch):
        write_set(folder, made())
        with open(os.devnull) as nobody, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", nobody)
            status, out, err = lensae("store", "remove", "toy")
        assert status == 2 and "--yes" in err and not out
        assert find_set("toy").rows

    @pytest.mark.parametrize("line, status, there", [("y", 0, False), ("n", 1, True), ("", 1, True)])
    def test_asked(self, folder, lensae, answer, line, status, there):
        write_set(folder, made())
        answer(line)
        found, _out, err = lensae("store", "remove", "toy")
        assert found == status and "remove it for good?" in err and folder.exists() == there
        if there:
            FolderLock(folder).release()  # nothing holds it any more

    def test_unfinished(self, folder, lensae):
        with writer(folder) as open_writer:
            for one in documents():
                open_writer.append(one)
        status, _out, err = lensae("store", "remove", "toy", "--yes")
        assert status == 0 and "unfinished" in err and not folder.exists()

    @pytest.mark.parametrize("spoil", ["manifest", "no manifest", "shard", "only a lock"])
    def test_damaged(self, folder, lensae, store, spoil):
        write_set(store / "other" / HOOK, documents(3))
        write_set(folder, made())
        if spoil == "manifest":
            (folder / "manifest.json").write_text("{")
        elif spoil == "no manifest":
            (folder / "manifest.json").unlink()
        elif spoil == "shard":
            (folder / "shards" / "00000.h5").write_bytes(b"")
        else:
            (folder / "manifest.json").unlink()
            shutil.rmtree(folder / "shards")
        assert lensae("store", "remove", f"toy/{HOOK}", "--yes")[0] == 0
        assert [entry.name for entry in list_sets()] == [f"other/{HOOK}"] and os.listdir(store) == ["other"]

    def test_a_set_being_written(self, folder, lensae):
        with writer(folder) as open_writer:
            for one in documents():
                open_writer.append(one)
            status, _out, err = lensae("store", "remove", "toy", "--yes")
            assert status == 1 and "another process" in err and "--name" not in err
            open_writer.finish()
        assert find_set("toy").rows == sum(len(d.token_id) for d in documents())

    def test_what_is_not_one_set(self, folder, lensae, store, tmp_path):
        write_set(folder, documents(3))
        write_set(store / "toy2" / HOOK, documents(3))
        (tmp_path / "precious").mkdir()
        names = {HOOK: "several", f"toy3/{HOOK}": "did you mean", tmp_path / "precious": "no activation set"}
        for name, what in names.items():
            status, _out, err = lensae("store", "remove", name, "--yes")
            assert status == 2 and what in err, err
        assert len(list_sets()) == 2 and (tmp_path / "precious").is_dir()

    def test_a_folder_elsewhere_and_a_link_to_it(self, store, lensae, tmp_path):
        elsewhere = write_set(tmp_path / "disk" / "mine", documents(3))
        (store / "toy").mkdir(parents=True)
        (store / "toy" / HOOK).symlink_to(elsewhere)
        status, _out, err = lensae("store", "remove", "toy", "--yes")
        assert status == 2 and "is a link" in err and str(elsewhere) in err
        assert lensae("store", "remove", elsewhere, "--yes")[0] == 0
        assert not elsewhere.exists() and elsewhere.parent.is_dir(), "only folders of the store are tidied"

    def test_a_delete_that_fails_halfway_leaves_no_half_set(self, folder, lensae, store, monkeypatch):
        write_set(folder, made())

        def stopped(path):
            raise PermissionError(13, "Permission denied", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", stopped)
            assert lensae("store", "remove", "toy", "--yes")[0] == 1
        assert not folder.exists() and not list_sets()
