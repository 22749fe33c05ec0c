"""GGUF files that cannot be used: refused by their header, in one line, before a library trusts their numbers."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from lensae.core.errors import UserError
from lensae.model.gguf_header import check_gguf

SIZES = {"block_count": 1, "embedding_length": 4, "feed_forward_length": 8, "context_length": 16}


def write_gguf(path: Path, architecture: str = "llama", **sizes: int) -> bytes:
    """A small GGUF file with every kind of metadata and two tensors; returns its bytes."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    for name, value in (SIZES | sizes).items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, 2.5])
    writer.add_bool("flag", True)
    writer.add_tensor("token_embd.weight", np.zeros((8, 4), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.ones((8, 4), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "small.gguf"


def test_a_whole_file_passes(path):
    write_gguf(path)
    header = check_gguf(path)
    assert header.metadata["llama.embedding_length"] == 4 and header.metadata["flag"] is True
    assert header.dimensions == {"token_embd.weight": (4, 8), "blk.0.ffn_up.weight": (4, 8)}


def test_the_reader_of_the_gguf_package_agrees(path):
    from gguf import GGUFReader

    write_gguf(path)
    tensors = {tensor.name: tuple(tensor.shape.tolist()) for tensor in GGUFReader(path).tensors}
    assert check_gguf(path).dimensions == tensors


def test_every_truncation_is_refused(path):
    data = write_gguf(path)
    data = data[: len(data.rstrip(b"\0"))]  # what follows the last tensor is padding
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="is not a usable GGUF file"):
            check_gguf(path)


def test_changed_bytes_are_refused_or_read_at_once(path):
    data = write_gguf(path)
    random = np.random.default_rng(0)
    refused, started = 0, time.monotonic()
    for _ in range(2000):
        changed = bytearray(data)
        position = int(random.integers(400))
        changed[position] = int(random.integers(256))
        path.write_bytes(changed)
        try:
            check_gguf(path)
        except UserError as error:
            assert "\n" not in error.what
            refused += 1
    assert refused > 500 and time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("offset", "number", "message"),
    [
        (0, b"GGML", "does not begin with 'GGUF'"),
        (4, struct.pack("<I", 1), "version is 1"),
        (8, struct.pack("<Q", 2**60), "tensors and .* do not fit"),
        (16, struct.pack("<Q", 2**60), "entries of metadata do not fit"),
        (24, struct.pack("<Q", 2**60), "a text of 1,152,921,504,606,846,976 bytes"),
    ],
)
def test_hostile_numbers(path, offset, number, message):
    data = write_gguf(path)
    path.write_bytes(data[:offset] + number + data[offset + len(number) :])
    with pytest.raises(UserError, match=message):
        check_gguf(path)


def test_a_hostile_array(path):
    data = write_gguf(path)
    position = data.index(b"tokenizer.ggml.scores") + len("tokenizer.ggml.scores") + 8  # its type, its elements' type
    path.write_bytes(data[:position] + struct.pack("<Q", 2**62) + data[position + 8 :])
    with pytest.raises(UserError, match=r"values of 'tokenizer\.ggml\.scores'"):
        check_gguf(path)


@pytest.mark.parametrize("name", [*SIZES, "vocab_size"])
def test_sizes_that_no_tensor_has(path, name):
    write_gguf(path, **{name: 10**9})
    if name == "context_length":  # sizes no weight
        check_gguf(path)
        return
    with pytest.raises(UserError, match=f"llama.{name} 1000000000"):
        check_gguf(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(100), b"x" * 1000])
def test_the_command_line_says_it_in_one_line(path, content, lensae, monkeypatch, tmp_path):
    monkeypatch.setenv("LENSAE_CACHE", str(tmp_path / "cache"))
    path.write_bytes(content)
    status, out, err = lensae("collect", path)
    assert status == 2 and not out and "small.gguf is not a usable GGUF file" in err and "unexpected" not in err
    assert not (tmp_path / "cache").exists()


def test_an_architecture_that_transformers_does_not_know(path, lensae, monkeypatch, tmp_path):
    monkeypatch.setenv("LENSAE_CACHE", str(tmp_path / "cache"))
    write_gguf(path, "abacus")
    status, _out, err = lensae("collect", path)
    assert status == 2 and "abacus" in err and "cannot be read as a GGUF model" in err
    assert not list(tmp_path.rglob("config.json"))


def test_a_model_that_transformers_cannot_make(path, lensae, monkeypatch, tmp_path):
    """Its header is in order, but it has no tokenizer that can be used and lacks most weights."""
    monkeypatch.setenv("LENSAE_CACHE", str(tmp_path / "cache"))
    write_gguf(path)
    status, _out, err = lensae("collect", path)
    assert status == 2 and "small.gguf" in err and not list(tmp_path.rglob("config.json"))
