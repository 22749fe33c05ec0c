"""A set with every kind of document, and what a copy of it has to hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from helpers import HOOK, documents

from lensae.store.schema import ROW_COLUMNS, TEXT_COLUMNS


def made() -> list:
    """Documents for several shards: one is empty, and tokens are of one character each, some far from ASCII."""
    found = documents(40)
    for number, alphabet in ((2, "äß€𝄞日本語 \n"), (11, "👩‍🚀éे")):
        rows = len(found[number].token_id)
        text = "".join(alphabet[i % len(alphabet)] for i in range(rows))
        start = np.arange(rows)
        found[number] = replace(found[number], text=text, char_start=start, char_end=start + 1, label="ñ")
    return found


def expected(found: list, dtype: str) -> dict[str, np.ndarray]:
    """The arrays of the documents, put together in memory."""
    lengths = [len(d.token_id) for d in found]
    arrays = {"activations": np.concatenate([d.activations[HOOK] for d in found]).astype(dtype)}
    for name, kind in ROW_COLUMNS.items():
        if name != "document":
            arrays[name] = np.concatenate([getattr(d, name) for d in found]).astype(kind)
    arrays["document"] = np.repeat(np.arange(len(found)), lengths)
    arrays["document_start"] = np.cumsum([0, *lengths])
    arrays["input_ids"] = np.concatenate([d.input_ids for d in found]).astype(np.int32)
    arrays["input_start"] = np.cumsum([0] + [len(d.input_ids) for d in found])
    for name in TEXT_COLUMNS:
        data = [getattr(d, name).encode() for d in found]
        arrays[f"{name}_bytes"] = np.frombuffer(b"".join(data), np.uint8)
        arrays[f"{name}_offsets"] = np.cumsum([0] + [len(one) for one in data])
    return arrays


def same(found: dict, wanted: dict) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def opened(lines: str, name: str):
    """What `name` is after the two lines that a command printed."""
    values: dict = {}
    exec(lines, values)
    return values[name]
