"""Whole or not at all."""

from __future__ import annotations

import os

import pytest
from helpers import dead_pid

from lensae.core.durable import Folder, clear_partials, partial_of, read_json, write_file, write_json
from lensae.core.errors import DamagedError


def test_a_file_is_replaced_or_left(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})

    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"n": 2})
    assert read_json(path) == {"n": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["", "[1]", "{", "\udcff"])
def test_what_is_not_a_json_object(tmp_path, text):
    (tmp_path / "a.json").write_text(text, errors="surrogateescape")
    with pytest.raises(DamagedError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DamagedError, match="missing"):
        read_json(tmp_path / "b.json")


def test_a_folder_appears_when_it_is_full(tmp_path):
    target = tmp_path / "deep" / "target"
    with Folder(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x" and len(list(target.parent.iterdir())) == 1


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), Folder(tmp_path / "target") as folder:
        (folder / "file").write_text("x")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_two_that_build_one_folder(tmp_path):
    for taken, names in ((lambda t: None, ["a"]), (lambda t: t.with_name("b"), ["a", "b"])):
        with Folder(tmp_path / "a", taken) as folder:
            (folder / "file").write_text(str(names))
        assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert (tmp_path / "a" / "file").read_text() == "['a']", "the first stays as it was"


def test_leftovers_of_the_dead_are_cleared_and_those_of_the_living_stay(tmp_path):
    dead = dead_pid()
    left = [tmp_path / f".x.{dead}.partial", tmp_path / f".folder.{dead}.partial"]
    left[0].write_text("")
    left[1].mkdir()
    write_file(tmp_path / "mine", b"")
    partial_of(tmp_path / "mine").write_text("")
    clear_partials(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f".mine.{os.getpid()}.partial", "mine"])
