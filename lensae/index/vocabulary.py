"""The tokens and the labels that occur in a segment, with their texts.

Shapes: T rows of a shard, N documents, V different tokens, L different labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lensae.index.ordering import expand_ranges
from lensae.index.tables import ShardColumns


@dataclass(frozen=True)
class Texts:
    """Many short texts as two arrays: the bytes of all as UTF-8, and where each begins and the last one ends."""

    data: np.ndarray
    offsets: np.ndarray

    @staticmethod
    def of(texts: Sequence[bytes]) -> Texts:
        """The texts of a list."""
        return Texts(np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)]))

    @staticmethod
    def read(arrays: Mapping, group: str) -> Texts:
        """The texts in a group of datasets."""
        return Texts(arrays[f"{group}/text_bytes"][...], arrays[f"{group}/text_offsets"][...])

    def arrays(self) -> dict[str, np.ndarray]:
        """The datasets that `read` reads."""
        return {"text_bytes": self.data, "text_offsets": self.offsets}

    def take(self, numbers: np.ndarray) -> Texts:
        """The texts with these numbers."""
        start, length = self.offsets[numbers], np.diff(self.offsets)[numbers]
        return Texts(self.data[expand_ranges(start, length)], np.concatenate([[0], np.cumsum(length)]))

    @staticmethod
    def read_one(arrays: Mapping, group: str, number: int) -> str:
        """One of the texts in a group of datasets."""
        start, end = arrays[f"{group}/text_offsets"][number : number + 2].tolist()
        return arrays[f"{group}/text_bytes"][start:end].tobytes().decode()

    def to_list(self) -> list[bytes]:
        """Each text."""
        data, offsets = self.data.tobytes(), self.offsets.tolist()
        return [data[start:end] for start, end in pairwise(offsets)]


def joined(parts: Sequence[Texts]) -> Texts:
    """The texts of all parts."""
    ends = np.cumsum([len(part.data) for part in parts])
    offsets = [part.offsets[1:] + end - len(part.data) for part, end in zip(parts, ends, strict=True)]
    return Texts(np.concatenate([part.data for part in parts]), np.concatenate([[0], *offsets]))


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens (V,) in rising order, how often each occurs (V,), and the text of its first occurrence."""

    token_V: np.ndarray
    occurs_V: np.ndarray
    texts: Texts

    @staticmethod
    def of(columns: ShardColumns) -> Vocabulary:
        """The tokens of one shard."""
        token_V, first_V, occurs_V = np.unique(columns.token_id_T, return_index=True, return_counts=True)
        document_V, start_V, end_V = (
            column[first_V].tolist() for column in (columns.document_T, columns.char_start_T, columns.char_end_T)
        )
        spans = zip(document_V, start_V, end_V, strict=True)
        texts = [columns.texts[document][start:end].encode() for document, start, end in spans]
        return Vocabulary(token_V=token_V, occurs_V=occurs_V, texts=Texts.of(texts))

    @staticmethod
    def read(arrays: Mapping) -> Vocabulary:
        """What `arrays` wrote."""
        token_V, occurs_V = arrays["vocabulary/token"][...], arrays["vocabulary/occurs"][...]
        return Vocabulary(token_V=token_V, occurs_V=occurs_V, texts=Texts.read(arrays, "vocabulary"))

    def arrays(self) -> dict[str, np.ndarray]:
        """The datasets of a segment that hold this."""
        columns = {"token": self.token_V.astype(np.int32), "occurs": self.occurs_V, **self.texts.arrays()}
        return {f"vocabulary/{name}": column for name, column in columns.items()}


def merge_vocabularies(parts: Sequence[Vocabulary]) -> Vocabulary:
    """The tokens of several segments; the text is that of the first segment in which a token occurs."""
    token = np.concatenate([part.token_V for part in parts])
    token_V, first_V, code = np.unique(token, return_index=True, return_inverse=True)
    occurs_V = np.zeros(len(token_V), np.int64)
    np.add.at(occurs_V, code, np.concatenate([part.occurs_V for part in parts]))
    return Vocabulary(token_V=token_V, occurs_V=occurs_V, texts=joined([part.texts for part in parts]).take(first_V))


@dataclass(frozen=True, kw_only=True)
class LabelNames:
    """Labels (L,) in order of their names as UTF-8, and how many documents and rows have each."""

    names: list[bytes]
    documents_L: np.ndarray
    rows_L: np.ndarray

    @staticmethod
    def of(columns: ShardColumns) -> LabelNames:
        """The labels of one shard."""
        names = sorted({label.encode() for label in columns.labels if label})
        code_N = label_codes(columns, names)
        code_T = code_N[columns.document_T]
        counts = (np.bincount(code[code >= 0], minlength=len(names)) for code in (code_N, code_T))
        return LabelNames(names=names, documents_L=next(counts), rows_L=next(counts))

    @staticmethod
    def read(arrays: Mapping) -> LabelNames:
        """What `arrays` wrote."""
        documents_L, rows_L = arrays["label_names/documents"][...], arrays["label_names/rows"][...]
        names = Texts.read(arrays, "label_names").to_list()
        return LabelNames(names=names, documents_L=documents_L, rows_L=rows_L)

    def arrays(self) -> dict[str, np.ndarray]:
        """The datasets of a segment that hold this."""
        columns = {"documents": self.documents_L, "rows": self.rows_L, **Texts.of(self.names).arrays()}
        return {f"label_names/{name}": column for name, column in columns.items()}


def label_codes(columns: ShardColumns, names: Sequence[bytes]) -> np.ndarray:
    """The number (N,) of each document's label in `names`, -1 for none."""
    number = {name: code for code, name in enumerate(names)}
    return np.array([number.get(label.encode(), -1) for label in columns.labels], np.int64)


def merge_label_names(parts: Sequence[LabelNames]) -> tuple[LabelNames, list[np.ndarray]]:
    """The labels of several segments, and for each segment the new number of each of its labels."""
    names = sorted({name for part in parts for name in part.names})
    number = {name: code for code, name in enumerate(names)}
    codes = [np.array([number[name] for name in part.names], np.int64) for part in parts]
    documents_L, rows_L = (np.zeros(len(names), np.int64) for _ in range(2))
    for part, code in zip(parts, codes, strict=True):
        documents_L[code] += part.documents_L
        rows_L[code] += part.rows_L
    return LabelNames(names=names, documents_L=documents_L, rows_L=rows_L), codes
