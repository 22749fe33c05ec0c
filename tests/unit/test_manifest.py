"""The manifest and its journal: what a shard costs, and what a kill or a second writer leaves."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import HOOK, MODEL, ROOT, document, documents, write_set, writer

from lensae.core import manifest as module
from lensae.core.errors import DamagedError, LensaeError
from lensae.core.manifest import append_shard, read_manifest, write_manifest
from lensae.core.paths import list_sets, read_set
from lensae.store.reader import SetReader
from lensae.store.view import write_view
from lensae.store.writer import SetWriter, header

# Writes a set, and kills itself in the middle of shard 3's journal line ("line"), before it ("shard") or after it.
KILLED = """
import os, signal, sys
from pathlib import Path
from helpers import documents, writer
from lensae.store import writer as module

real, count = module.append_shard, 0

def append(folder, shard):
    global count
    count += 1
    if count < 4:
        return real(folder, shard)
    if sys.argv[2] == "line":
        with open(folder / "shards.jsonl", "ab") as file:
            file.write(b'{"file": "0000')
    if sys.argv[2] == "after":
        real(folder, shard)
    os.kill(os.getpid(), signal.SIGKILL)

module.append_shard = append
with writer(Path(sys.argv[1])) as open_writer:
    for one in documents():
        open_writer.append(one)
    open_writer.finish()
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@pytest.fixture
def written_files(monkeypatch) -> list[str]:
    """The names of the files that the manifest's module writes as wholes, in order."""
    names, real = [], module.write_json

    def write_json(path, value):
        names.append(path.name)
        real(path, value)

    monkeypatch.setattr(module, "write_json", write_json)
    return names


def test_300_shards_write_the_manifest_twice(folder, written_files):
    sizes = []
    with writer(folder, shard_rows=1) as open_writer:
        for number in range(300):
            open_writer.append(document(number, 2))
            open_writer._wait_for_thread()
            sizes.append((folder / "shards.jsonl").stat().st_size)
        open_writer.finish()
    assert written_files == ["manifest.json"] * 2, "when the pass began and when it was finished"
    lines = {after - before for before, after in itertools.pairwise(sizes)}
    assert max(lines) < 300, "bytes of a journal line, however many shards"
    assert len(read_manifest(folder).shards) == 300 and not (folder / "shards.jsonl").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("moment", ["shard", "line", "after"])
def test_a_kill_between_a_shard_and_its_journal_line(folder, store, moment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), moment], env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    unfinished = read_manifest(folder)
    assert len(unfinished.shards) == (4 if moment == "after" else 3) and not unfinished.passes[0].completed_at
    assert [entry.completed_at for entry in list_sets()] == [""]
    assert len(contents(folder)) == 4
    with writer(folder) as again:
        assert again.documents_done == sum(shard.documents for shard in again.manifest.shards)
        assert len(again.manifest.shards) == 4 and not (folder / "shards.jsonl").exists()
        for one in documents()[again.documents_done :]:
            again.append(one)
        again.finish()
    write_set(store / "whole" / HOOK, documents())
    assert contents(folder) == contents(store / "whole" / HOOK)
    shards = [read_manifest(path).shards for path in (folder, store / "whole" / HOOK)]
    assert shards[0] == shards[1]


def test_a_damaged_line_is_named(folder):
    write_set(folder, documents())
    (folder / "shards.jsonl").write_bytes(b'{"file": "00000.h5"\n')
    with pytest.raises(DamagedError, match=r"shards\.jsonl is not JSON lines"):
        read_manifest(folder)
    (folder / "shards.jsonl").write_bytes(b'{"file": "00000.h5"}\n')
    with pytest.raises(DamagedError, match=r"shards\.jsonl: line 1 lacks 'rows'"):
        read_manifest(folder)


def test_a_reader_sees_every_shard_while_the_journal_is_folded_in(folder, monkeypatch):
    """A reader that reads the journal while a writer folds it into the manifest finds each shard in one of the two."""
    with writer(folder) as open_writer:
        for one in documents():
            open_writer.append(one)
        open_writer.flush()
        count, real = len(open_writer.manifest.shards), module.read_journals

        def read_journals(path):
            shards = real(path)
            write_manifest(folder, open_writer.manifest)
            return shards

        monkeypatch.setattr(module, "read_journals", read_journals)
        assert len(read_manifest(folder).shards) == count > 3


def test_a_second_writer_changes_nothing(folder):
    with writer(folder) as first:
        for one in documents(20):
            first.append(one)
        first.flush()
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        with pytest.raises(LensaeError, match="another process is writing to"):
            writer(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
        for one in documents()[20:]:
            first.append(one)
        first.finish()
    assert read_manifest(folder).passes[0].documents == 30


def test_processes_have_journals_of_their_own(folder, monkeypatch):
    """The first process lists the others' shards by their journals, without reading the shards again."""
    made, about = documents(), header(MODEL, HOOK, 16, "float16", {})
    arguments = (about, {"corpus": "made-up"}, "python main.py collect", 64)
    with SetWriter(folder, *arguments, world_size=2) as first:
        with SetWriter(folder, *arguments, rank=1, world_size=2) as second:
            for rank, open_writer in enumerate((first, second)):
                for one in made[rank::2]:
                    open_writer.append(one)
                open_writer.flush()
        assert (folder / "shards.jsonl").is_file() and (folder / "shards-1.jsonl").is_file()
        count = len(list((folder / "shards").iterdir()))
        assert len(read_manifest(folder).shards) == count
        monkeypatch.setattr(Path, "read_bytes", _only_journals(Path.read_bytes))
        first.finish()
    manifest = read_manifest(folder)
    assert len(manifest.shards) == count and {shard.rank for shard in manifest.shards} == {0, 1}
    assert manifest.passes[0].documents == 30 and not list(folder.glob("*.jsonl"))


def _only_journals(real):
    def read_bytes(path):
        assert path.suffix == ".jsonl"
        return real(path)

    return read_bytes


def test_shards_are_in_the_order_of_their_numbers(folder):
    """A hundred thousand shards have six digits."""
    write_set(folder, documents(12))
    manifest = read_manifest(folder)
    first = manifest.shards[0]
    for file in ("100000.h5", "99999.h5", "99999-1.h5"):
        append_shard(folder, replace(first, file=file, rank=int("-" in file)))
    names = [shard.file for shard in read_manifest(folder).shards]
    assert names[-3:] == ["99999.h5", "99999-1.h5", "100000.h5"]


def test_the_view_opens_every_shard_once(folder, monkeypatch):
    write_set(folder, documents())
    opened, real = [], SetReader.shard

    def shard(self, number):
        opened.append(number)
        return real(self, number)

    monkeypatch.setattr(SetReader, "shard", shard)
    write_view(read_set(folder))
    assert opened == list(range(len(read_set(folder).manifest.shards)))


def test_appending_is_on_disk_and_one_line(folder):
    write_set(folder, documents(6))
    shard = read_manifest(folder).shards[0]
    append_shard(folder, shard)
    [line] = (folder / "shards.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == shard.file
    assert len(read_manifest(folder).shards) == len(read_set(folder).manifest.shards)
