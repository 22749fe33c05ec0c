"""Tiny models of every family, made here from nothing and saved as local directories, and a store of their own."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import processes
import pytest

# What libraries read when they are imported: set before any of them is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="lensae-tests-hub-")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores
for name in ("COLUMNS", "LINES", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)  # of the terminal and of the make that started the tests
atexit.register(shutil.rmtree, os.environ["HF_HUB_CACHE"], ignore_errors=True)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `nohup make test &`: processes of tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("gpt2", "llama", "qwen2", "gemma3")
LAYERS, WIDTH = 8, 64


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE trained on the shipped corpora."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    files = sorted((ROOT / "corpora").glob("*.jsonl"))
    texts = [json.loads(line)["text"] for path in files for line in path.read_text().splitlines()]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|endoftext|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|end|>")


def make_model(family: str, vocabulary: int, seed: int = 0, width: int = WIDTH):
    """A randomly initialised transformers model whose weights are large enough for layers to differ."""
    import torch
    import transformers as t

    torch.manual_seed(seed)
    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2}
    stack = {"num_hidden_layers": LAYERS, "hidden_size": width, "intermediate_size": 96, "num_attention_heads": 4}
    config = {
        "gpt2": lambda: t.GPT2Config(n_layer=LAYERS, n_embd=width, n_head=4, n_positions=256, **common),
        "llama": lambda: t.LlamaConfig(**stack, num_key_value_heads=2, max_position_embeddings=256, **common),
        "qwen2": lambda: t.Qwen2Config(**stack, num_key_value_heads=2, max_position_embeddings=256, **common),
        "gemma3": lambda: t.Gemma3TextConfig(
            **stack,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=256,
            sliding_window=16,
            pad_token_id=1,
            **common,
        ),
    }[family]()
    return t.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tokenizer) -> Callable[[str], Path]:
    """family -> directory of its tiny model."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("models") / f"tiny-{family}"
            make_model(family, len(tokenizer)).save_pretrained(made[family])
            tokenizer.save_pretrained(made[family])
        return made[family]

    return get


@pytest.fixture(scope="session")
def hub_cache(tokenizer) -> Path:
    """The hub cache of these tests, which holds a tiny model under the name gpt2-medium."""
    cache = Path(os.environ["HF_HUB_CACHE"])
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--gpt2-medium"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    make_model("gpt2", len(tokenizer), seed=1, width=128).save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    return cache


@pytest.fixture(autouse=True)
def no_process_is_left():
    """No process that a test has started outlives it."""
    yield
    processes.end_all()


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """An empty store, used by everything that runs in this process."""
    monkeypatch.setenv("LENSAE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LENSAE_EXPERIMENTS", str(tmp_path / "experiments"))
    return tmp_path / "store"


@pytest.fixture
def lensae(store, capsys, monkeypatch):
    """Run a command line in this process: lensae("store", "list") -> (exit status, stdout, stderr)."""
    from lensae.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, model_dir) -> Path:
    """A store with one small set, an SAE and its index, to be looked at and not changed."""
    from lensae.core.recipe import TrainRecipe
    from lensae.stages import index
    from lensae.stages.collect import run as collect
    from lensae.stages.train import run as train

    folder = tmp_path_factory.mktemp("trained") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSAE_STORE", str(folder))
        options = collect.CollectOptions(
            model=str(model_dir("llama")), hooks=("blocks.4.hook_resid_post",), max_new_tokens=24, samples_per_prompt=2
        )
        collect.collect(options, "python main.py collect")
        train.train(TrainRecipe(width=8, k=8, epochs=3, batch=512))
        index.build()
    return folder


@pytest.fixture
def use_trained(trained, monkeypatch) -> Path:
    """The trained store as the current one."""
    monkeypatch.setenv("LENSAE_STORE", str(trained))
    return trained


@pytest.fixture
def trained_copy(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the trained store as the current one, to be changed."""
    folder = tmp_path / "trained-copy"
    shutil.copytree(trained, folder)
    monkeypatch.setenv("LENSAE_STORE", str(folder))
    return folder


@pytest.fixture
def orthonormal_sae():
    """A ReLU SAE with orthonormal rows, so a feature can be set without moving the others."""
    import torch

    from lensae.sae.base import SAE

    torch.manual_seed(0)
    rows = torch.linalg.qr(torch.randn(64, 64)).Q[:20]
    tensors = {"W_enc": rows.T.clone(), "b_enc": torch.zeros(20), "W_dec": rows, "b_dec": torch.zeros(64)}
    return SAE({"architecture": "standard", "d_in": 64, "d_sae": 20}, tensors)


@pytest.fixture
def one_thread():
    """PyTorch computes in one thread, so that sums have one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def toy(store) -> Path:
    """A store with one made-up set of 1,000 rows."""
    from helpers import HOOK, write_set
    from training_helpers import made

    return write_set(store / "toy" / HOOK, made(), dtype="float32", shard_rows=300)


@pytest.fixture
def folder(store) -> Path:
    """Where the set toy/<hook> is, or will be."""
    from helpers import HOOK

    return store / "toy" / HOOK


@pytest.fixture(params=["float16", "float32"])
def written(request, folder) -> list:
    """The documents of a set of several shards."""
    from helpers import write_set
    from store_helpers import made

    from lensae.core.paths import find_set

    write_set(folder, made(), dtype=request.param)
    entry = find_set()
    assert len(entry.manifest.shards) > 3 and entry.manifest.dtype == request.param
    return made()
