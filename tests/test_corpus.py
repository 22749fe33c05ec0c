"""Corpora: the shipped ones are what they say, and bad files are named by line."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensae.corpus import packing, prompts
from lensae.corpus.stats import content_words, describe
from lensae.errors import UserError


def test_themes():
    corpus = prompts.load("themes")
    assert len(corpus.prompts) == 100
    assert set(Counter(p.label for p in corpus.prompts).values()) == {20}
    stats = describe(corpus)
    assert 21 <= stats.words_mean <= 23
    assert len({p.text for p in corpus.prompts}) == 100


def test_probes():
    labels = [p.label for p in prompts.load("probes").prompts]
    assert labels == ["narrative", "fact", "code", "dialogue", "science", "humour", "figurative language"]


def test_transport():
    corpus = prompts.load("transport")
    counts = Counter(p.label for p in corpus.prompts)
    assert len(counts) == 30 and set(counts.values()) == {10}
    assert corpus.template.count("{text}") == 1
    first = corpus.prompts[0]
    assert first.text in corpus.prompt_text(first) and len(corpus.prompt_text(first)) > len(first.text)
    assert all(p.label in p.text.lower() for p in corpus.prompts)


def test_text_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufefffirst\nstill first\n\n\n second \n", encoding="utf-8")
    assert [(p.id, p.text) for p in prompts.load(str(path)).prompts] == [
        ("line-1", "first\nstill first"),
        ("line-5", " second "),
    ]
    path.write_text("one\r\ntwo\r\nthree")
    assert [p.text for p in prompts.load(str(path)).prompts] == ["one", "two", "three"]


def test_jsonl_files(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "id": 3}\n\n{"text": "y", "label": null}\n{"text": "  "}\n')
    found = prompts.load(str(path)).prompts
    assert [(p.id, p.text, p.label) for p in found] == [("3", "x", ""), ("line-3", "y", "")]


BAD = {
    "bytes.txt": (b"fine\n\xff\xfe\n", "line 2: byte 1 is not UTF-8"),
    "bytes.jsonl": (b'{"text": "ok"}\n{"text": "\xe9"}\n', "line 2"),
    "broken.jsonl": (b'{"text": "ok"}\n{"text": \n', "line 2 is not JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1 is not an object"),
    "number.jsonl": (b'{"text": 5}\n', "line 1 is not an object"),
    "surrogate.jsonl": (b'{"text": "\\ud83d"}\n', "surrogate"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    "empty.txt": (b"", "holds no text"),
    "blank.jsonl": (b'{"text": " "}\n', "holds no text"),
    "picture.png": (b"\x89PNG", "no reader"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name, tmp_path):
    data, message = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        prompts.load(str(tmp_path / name))


def test_unknown_names(tmp_path):
    with pytest.raises(UserError) as error:
        prompts.load("transprt")
    assert "transport" in error.value.hint
    with pytest.raises(UserError, match="no file"):
        prompts.load(str(tmp_path / "nothing.txt"))


def test_a_template_needs_its_placeholder(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "a.template.txt").write_text("Say it twice: {text} {text}")
    with pytest.raises(UserError, match="once"):
        prompts.load(str(tmp_path / "a.txt"))


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 9), st.integers(1, 5))
def test_batches_hold_every_text_once(lengths, size, pool):
    found = list(packing.batches(lengths, size, pool))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in found)


@given(st.lists(st.integers(1, 99), min_size=1, max_size=60), st.integers(2, 20))
def test_windows_keep_every_token_in_order(body, context):
    found = list(packing.windows([0, *body], 0, context))
    assert [t for window in found for t in window[1:]] == body
    assert all(window[0] == 0 and len(window) <= context for window in found)


def test_content_words():
    assert content_words("The tram isn't at the depot; it's a TRAM!") == ["tram", "depot", "tram"]


def test_stats_as_json(lensae):
    status, out, _err = lensae("corpus", "stats", "probes", "--json")
    found = json.loads(out)
    assert status == 0 and found["prompts"] == 7 and found["tokens"] > found["words"]
