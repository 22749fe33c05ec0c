"""Tokens and their places in the text."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lensae.core.errors import UserError
from lensae.model.text import Text

RELAXED = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def text(tokenizer):
    return Text(tokenizer)


@RELAXED
@given(st.text(max_size=60))
def test_spans_cut_the_text_into_its_tokens(text, words):
    ids = text.encode(words)
    whole, start, end = text.spans(ids)
    assert whole == text.tokenizer.decode(ids[1:])
    assert (start[0], end[0]) == (0, 0), "BOS is not part of the text"
    assert (start <= end).all() and (start[1:] >= start[:-1]).all()
    assert len(ids) == 1 or end[-1] == len(whole)
    covered = "".join(whole[s:e] for s, e in sorted({(int(s), int(e)) for s, e in zip(start, end, strict=True)}))
    assert covered == whole


@RELAXED
@given(st.text(max_size=60), st.lists(st.integers(0, 300), max_size=30))
def test_tokens_cut_on_their_own_are_those_cut_in_context(text, words, drawn):
    """Whether they come from a text or are any tokens at all."""
    for ids in (text.encode(words), drawn, [text.bos_id, *drawn]):
        found, plain = text.spans(ids), text.spans_in_context(ids)
        assert found[0] == plain[0]
        assert [one.tolist() for one in found[1:]] == [one.tolist() for one in plain[1:]]


@RELAXED
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60))
def test_valid_text_comes_back_unchanged(text, words):
    assert text.spans(text.encode(words))[0] == words


@RELAXED
@given(
    st.lists(st.sampled_from(["tram ", "late  ", " and", "\n", "é", "🚲 b", "7", "   "]), max_size=40),
    st.integers(1, 30),
)
def test_a_long_text_is_tokenised_in_pieces_alike(text, words, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lensae.model.text.CHUNK_CHARACTERS", piece)
        assert list(text.stream("".join(words))) == text.encode("".join(words))


def test_tokens_of_a_spread_character_share_its_span(text):
    ids = text.encode("a 🚲 b")
    whole, start, end = text.spans(ids)
    assert whole == "a 🚲 b"
    wheel = [i for i in range(len(ids)) if "🚲" in whole[start[i] : end[i]]]
    assert len(wheel) > 1 and len({(start[i], end[i]) for i in wheel}) == 1


def test_special_tokens_in_a_text_stay_text(text):
    ids = text.encode("before <|end|> after <|endoftext|>")
    assert ids[0] == text.bos_id and not set(ids[1:]) & text.special_ids
    assert text.spans(ids)[0] == "before <|end|> after <|endoftext|>"


def test_no_chat_template(text):
    with pytest.raises(UserError, match="chat template"):
        text.encode_chat("hello")


def test_chat_template_is_used(tokenizer):
    import copy

    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}{% endfor %}<|end|>bot:"
    text = Text(chatty)
    ids = text.encode_chat("hello")
    assert ids[0] == text.bos_id and ids.count(text.bos_id) == 1
    assert text.decode(ids) == "<|endoftext|>user: hello<|end|>bot:"


def test_sentencepiece_style_spaces():
    """A Metaspace decoder strips a leading space: the spans must be those of the whole text all the same."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "▁the": 1, "▁tram": 2, "s": 3, "▁": 4, ".": 5}
    bpe = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    text = Text(PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>"))
    whole, start, end = text.spans([0, 1, 2, 3, 5, 1])
    assert whole == "the trams. the"
    assert [whole[s:e] for s, e in zip(start, end, strict=True)] == ["", "the", " tram", "s", ".", " the"]
    assert text.spans([2])[0] == "tram" and text.spans([0, 2])[2].tolist() == [0, 4]


def test_long_texts_keep_their_spans(text):
    words = json.dumps({"a": ["tram", "façade", "naïve", "日本", "😀"] * 40}, ensure_ascii=False)
    whole, start, end = text.spans(text.encode(words))
    assert whole == words
    assert all(whole[s:e] for s, e in zip(start[1:], end[1:], strict=True))
