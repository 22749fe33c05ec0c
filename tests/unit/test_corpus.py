"""Corpora: the shipped ones are what they say, and bad files are named by line."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensae.core.errors import UserError
from lensae.core.records import ReadOptions
from lensae.corpus import packing, prompts
from lensae.corpus.stats import content_words, describe


def test_themes():
    corpus = prompts.load("themes")
    assert corpus.count == len(list(corpus)) == 100
    assert set(Counter(p.label for p in corpus).values()) == {20}
    stats = describe(corpus)
    assert 21 <= stats.words_mean <= 23
    assert len({p.text for p in corpus}) == 100


def test_probes():
    labels = [p.label for p in prompts.load("probes")]
    assert labels == ["narrative", "fact", "code", "dialogue", "science", "humour", "figurative language"]


def test_transport():
    corpus = prompts.load("transport")
    counts = Counter(p.label for p in corpus)
    assert len(counts) == 30 and set(counts.values()) == {10}
    assert corpus.template.count("{text}") == 1
    first = next(iter(corpus))
    assert first.text in corpus.prompt_text(first) and len(corpus.prompt_text(first)) > len(first.text)
    assert all(p.label in p.text.lower() for p in corpus)


def test_text_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufefffirst\nstill first\n\n\n second \n", encoding="utf-8")
    assert [(p.id, p.text) for p in prompts.load(str(path))] == [
        ("line-1", "first\nstill first"),
        ("line-5", " second "),
    ]
    path.write_text("one\r\ntwo\r\nthree")
    assert [p.text for p in prompts.load(str(path))] == ["one", "two", "three"]


def test_jsonl_files(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "id": 3}\n\n{"text": "y", "label": null}\n{"text": "  "}\n')
    found = prompts.load(str(path))
    assert [(p.id, p.text, p.label) for p in found] == [("3", "x", ""), ("line-3", "y", "")]


BAD = {
    "bytes.txt": (b"fine\n\xff\xfe\n", "line 2: byte 1 is not UTF-8"),
    "bytes.jsonl": (b'{"text": "ok"}\n{"text": "\xe9"}\n', "line 2"),
    "broken.jsonl": (b'{"text": "ok"}\n{"text": \n', "line 2 is not JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1 is not an object"),
    "number.jsonl": (b'{"text": 5}\n', "line 1: .text. holds int"),
    "surrogate.jsonl": (b'{"text": "\\ud83d"}\n', "surrogate"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    "header.csv": (b"body,label\na,b\n", "no column 'text'"),
    "short.csv": (b"label,text\nx,fine\ny\n", "line 3: .text. holds nothing"),
    "latin.csv": (b"text\n\xe9\n", "line 2: byte 1 is not UTF-8"),
    "empty.csv": (b"", "holds no text"),
    "broken.parquet": (b"PAR1 nothing", "cannot be read as Parquet"),
    "empty.parquet": (b"", "cannot be read as Parquet"),
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


def texts(name: str, **options) -> list[tuple[str, str, str]]:
    return [(p.id, p.text, p.label) for p in prompts.load(name, ReadOptions(**options))]


def test_csv_files(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufefftext,label,id\n"one, with\na break",red,x1\n"",none,x2\nthree,,x3\n', encoding="utf-8")
    assert texts(str(path)) == [("x1", "one, with\na break", "red"), ("x3", "three", "")]
    path.write_text("body,kind\r\n" + "a" * 200_000 + ",long\r\n")
    ((own, text, label),) = texts(str(path), text_column="body", label_column="kind")
    assert (own, len(text), label) == ("line-2", 200_000, "long")


def test_lines_or_blocks(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\n")
    assert [t for _, t, _ in texts(str(path))] == ["one\ntwo", "three"]
    assert [t for _, t, _ in texts(str(path), lines=True)] == ["one", "two", "three"]
    path.write_text("one\ntwo\n\n\n")
    assert [t for _, t, _ in texts(str(path))] == ["one", "two"]
    assert [t for _, t, _ in texts(str(path), lines=False)] == ["one\ntwo"]


def test_parquet_files(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    rows = [{"text": f"text {n}", "label": n % 3, "other": [n]} for n in range(2_500)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = texts(str(path))
    assert len(found) == 2_500 and found[1_500] == ("line-1501", "text 1500", "0")
    for column, message in (("label", "holds int"), ("other", "holds list"), ("txet", "no column 'txet'")):
        with pytest.raises(UserError, match=message):
            prompts.load(str(path), ReadOptions(text_column=column))


def test_datasets_in_a_directory(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    rows = {"text": ["one", "two", " "], "label": ["red", "blue", "none"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    assert texts(f"hf:{tmp_path / 'saved'}") == [("line-1", "one", "red"), ("line-2", "two", "blue")]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "test.jsonl").write_text('{"body": "three"}\n')
    assert texts(f"hf:{tmp_path / 'files'}::test", text_column="body") == [("line-1", "three", "")]
    corpus = prompts.load(f"hf:{tmp_path / 'saved'}")
    assert corpus.count is None and list(corpus) == list(corpus), "it can be read again"
    with pytest.raises(UserError, match="cannot be opened"):
        prompts.load(f"hf:{tmp_path / 'files'}::nope")
    with pytest.raises(UserError, match="cannot be opened"):
        prompts.load("hf:no/such-dataset")


def test_a_dataset_is_known_by_its_content(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n')
    first = prompts.load(f"hf:{tmp_path}").sha256
    assert prompts.load(f"hf:{tmp_path}").sha256 == first
    (tmp_path / "data.jsonl").write_text('{"text": "two"}\n')
    assert prompts.load(f"hf:{tmp_path}").sha256 != first


def test_standard_input(monkeypatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("one\ntwo é\n".encode())))
    assert [t for _, t, _ in texts("-")] == ["one", "two é"]


@pytest.mark.slow
def test_a_very_long_line(tmp_path):
    """It is one document; nothing is cut and nothing fails before the model's context cuts it."""
    path = tmp_path / "long.jsonl"
    with open(path, "w") as file:
        file.write('{"text": "' + "tram " * 40_000_000 + '"}\n')
    ((_own, text, _label),) = texts(str(path))
    assert len(text) == 200_000_000


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


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 9))
def test_batches_hold_every_item_once_in_order(items, size):
    found = list(packing.batches(items, size))
    assert [item for batch in found for item in batch] == items
    assert all(len(batch) == size for batch in found[:-1]) and all(0 < len(batch) <= size for batch in found)


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 400), st.integers(1, 5))
def test_full_batches_hold_every_item_once_and_fit(lengths, tokens, pool):
    items = list(enumerate(lengths))
    found = list(packing.full_batches(items, tokens, lambda item: item[1], pool))
    assert sorted(item for batch in found for item in batch) == items
    for batch in found:
        widest = max(length for _number, length in batch)
        assert len(batch) == 1 or len(batch) * widest <= tokens


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(1, 99), max_size=30)), max_size=20),
    st.integers(2, 12),
)
def test_joined_contexts_are_full_and_hold_every_token_in_order(texts, context):
    found = list(packing.joined([(label, [0, *body]) for label, body in texts], 0, context))
    assert all(len(window) == context for _label, window in found[:-1])
    assert all(window[0] == 0 and 1 < len(window) <= context for _label, window in found)
    kept = [token for _label, window in found for token in window if token]
    assert kept == [token for _label, body in texts for token in body]
    starts = sum(1 for _label, body in texts if body)
    assert sum(window.count(0) for _label, window in found) <= len(found) + max(starts - 1, 0)


def test_joined_contexts_keep_a_label_that_all_their_documents_share():
    texts = [("a", [0, 1, 2, 3]), ("a", [0, 4]), ("b", [0, 5, 6, 7, 8])]
    found = list(packing.joined(texts, 0, 6))
    assert found == [("a", [0, 1, 2, 3, 0, 4]), ("b", [0, 5, 6, 7, 8])]
    assert list(packing.joined(texts, 0, 5)) == [("a", [0, 1, 2, 3, 0]), ("", [0, 4, 0, 5, 6]), ("b", [0, 7, 8])]
    assert list(packing.joined([("a", [1, 2]), ("b", [3])], None, 2)) == [("a", [1, 2]), ("b", [3])]


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
