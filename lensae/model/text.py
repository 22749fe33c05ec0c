"""Text and tokens: encoding with a leading BOS, and the span of every token in the text.

Shapes: T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from lensae.core.errors import UserError

REPLACEMENT = "\ufffd"  # stands for bytes that form no character
CHUNK_CHARACTERS = 1_000_000
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


class Text:
    """A tokenizer with lensae's conventions: one BOS in front, special tokens known, each token's characters known."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._decode = _raw_decoder(tokenizer)
        self._alone = _Alone(self._decode)
        self.special_ids = self._find_special_ids()
        self.bos_id = self._find_bos()
        self.eos_ids = {tokenizer.eos_token_id} - {None}
        self.pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)

    def _find_special_ids(self) -> frozenset[int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset(self.tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}

    def _find_bos(self) -> int | None:
        """The token put in front of plain text, so that the attention sink falls on it and not on a word.

        Families without a BOS (Qwen) separate their training documents by the padding or end token.
        """
        tokenizer = self.tokenizer
        ids = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
        return next((i for i in ids if i is not None), None)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text with BOS in front; text that looks like a special token stays plain text."""
        return ([] if self.bos_id is None else [self.bos_id]) + list(self._plain(text))

    def stream(self, text: str) -> Iterator[int]:
        """The same ids one by one: a text of hundreds of megabytes is tokenised only as far as it is consumed.

        It is cut about every million characters, before a space between two words, which no token crosses.
        """
        start = 0
        if self.bos_id is not None:
            yield self.bos_id
        while start < len(text):
            between = BETWEEN_WORDS.search(text, start + CHUNK_CHARACTERS)
            stop = between.start() if between else len(text)
            yield from self._plain(text[start:stop])
            start = stop

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of `text` as a user's message in the model's chat template, up to where the answer begins."""
        if not self.tokenizer.chat_template:
            raise UserError("this model has no chat template", "leave --chat out")
        message = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = list(self.tokenizer(rendered, add_special_tokens=False, verbose=False).input_ids)
        if self.bos_id is not None and not (ids and ids[0] in self.special_ids):
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens written out, nothing tidied up."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def without_specials(self, ids: Sequence[int]) -> list[int]:
        """`ids` less every special token."""
        return [i for i in ids if i not in self.special_ids]

    def spans(self, ids: Sequence[int]) -> tuple[str, np.ndarray, np.ndarray]:
        """The text of `ids` and the span of each token in it.

        Returns (text, start (T,), end (T,)) in characters; `text[start[i]:end[i]]` is token i. The tokens of a
        character that is spread over several (an emoji in a byte-level vocabulary) share that character's span. A
        BOS in front belongs to the model's input and not to the text: its span is empty.
        """
        first = int(bool(len(ids)) and ids[0] == self.bos_id)
        token_texts = self._separate_texts(ids[first:])
        if token_texts is None:
            return self.spans_in_context(ids)
        end = np.zeros(len(ids), np.int32)
        np.cumsum(np.fromiter(map(len, token_texts), np.int32, len(token_texts)), out=end[first:])
        return "".join(token_texts), np.concatenate([np.zeros(1, np.int32), end])[: len(ids)], end

    def _separate_texts(self, ids: Sequence[int]) -> list[str] | None:
        """The text of each token decoded alone, or None where these do not add up to the text of all."""
        token_texts = [self._alone[i] for i in ids]
        text = "".join(token_texts)
        return None if REPLACEMENT in text or text != self._decode(list(ids)) else token_texts

    def spans_in_context(self, ids: Sequence[int]) -> tuple[str, np.ndarray, np.ndarray]:
        """The same for every vocabulary, decoding each token together with the one before it."""
        first = int(bool(len(ids)) and ids[0] == self.bos_id)
        start, end = np.zeros(len(ids), np.int32), np.zeros(len(ids), np.int32)
        token_texts, length, known, done = [], 0, first, first
        # The text of the tokens known..done is known: decoding from `known` gives the next tokens the context
        # (leading spaces, joined bytes) that they have in the whole text.
        for i in range(first, len(ids)):
            before = self._decode(ids[known:done])
            now = self._decode(ids[known : i + 1])
            if now.endswith(REPLACEMENT) and i + 1 < len(ids) and i - done < 8:
                continue
            added = now[len(before) :]
            start[done : i + 1], end[done : i + 1] = length, length + len(added)
            token_texts.append(added)
            length += len(added)
            known, done = done, i + 1
        return "".join(token_texts), start, end


class _Alone(dict):
    """The text of each token decoded alone, cached."""

    def __init__(self, decode):
        super().__init__()
        self.decode = decode

    def __missing__(self, token: int) -> str:
        self[token] = text = self.decode([token])
        return text


def _raw_decoder(tokenizer):
    """The decode of the Rust tokenizer (a few microseconds), or else that of transformers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return lambda ids: backend.decode(list(ids), skip_special_tokens=False)
