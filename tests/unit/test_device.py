"""--device: which device is chosen, and what is said of one that this machine does not have."""

from __future__ import annotations

import pytest
import torch

from lensae.core.device import available, choose, current_device, requested_device, use_device
from lensae.core.errors import UserError
from lensae.sae.distributed.process_group import ProcessGroup
from lensae.stages.shared.processes import Process


@pytest.fixture
def machine(monkeypatch):
    """Make PyTorch see so many CUDA devices, and an Apple GPU or none."""

    def seen(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return seen


@pytest.mark.parametrize(
    ("cuda", "mps", "name", "chosen"),
    [
        (0, False, "auto", "cpu"),
        (2, False, "auto", "cuda"),
        (0, True, "auto", "cpu"),  # nothing has been checked on MPS: it has to be asked for
        (0, True, "mps", "mps"),
        (2, False, "cpu", "cpu"),
        (2, False, "cuda:1", "cuda:1"),
        (1, False, "cuda", "cuda"),
    ],
)
def test_the_device_that_is_chosen(machine, cuda, mps, name, chosen):
    machine(cuda, mps)
    assert choose(name) == chosen
    with use_device(name):
        assert (requested_device(), current_device()) == (name, chosen)
    assert requested_device() == "auto"


@pytest.mark.parametrize(
    ("cuda", "mps", "name", "message", "hint"),
    [
        (0, False, "cuda", "the device cuda is not available: ", "this machine has cpu"),
        (0, True, "cuda:0", "the device cuda:0 is not available: ", "this machine has mps, cpu"),
        (1, False, "mps", "the device mps is not available: ", "this machine has cuda, cpu"),
        (2, False, "cuda:2", "the device cuda:2 is not available: the GPUs here are cuda:0, cuda:1", "has cuda, cpu"),
        (0, False, "gpu", "no device named 'gpu'", "cpu"),
        (0, False, "cpu:1", "no device named 'cpu:1'", "cpu"),
    ],
)
def test_a_device_that_cannot_be_used(machine, cuda, mps, name, message, hint):
    machine(cuda, mps)
    with pytest.raises(UserError) as caught:
        choose(name)
    assert message in caught.value.what and hint in caught.value.hint


def test_the_devices_that_there_are(machine):
    machine(cuda=1, mps=False)
    assert available() == ["cuda", "cpu"]


def test_of_several_processes_each_has_its_own_gpu(machine):
    machine(cuda=2)
    process = Process(rank=3, world_size=4, local_rank=1)
    assert process.device == "cuda:1"
    with use_device("cpu"):
        assert process.device == "cpu"
    assert Process().device == "cuda"


def test_several_processes_train_on_the_cpu():
    from lensae.stages.train.setup import _device

    several = ProcessGroup(0, 2)
    assert _device(several) == "cpu"
    with use_device("cuda"), pytest.raises(UserError, match="several processes train on the CPU"):
        _device(several)


COMPUTING = ["collect", "survey", "train", "evaluate", "index", "steer", "experiment"]


@pytest.mark.parametrize("command", COMPUTING)
def test_every_command_that_computes_takes_a_device(lensae, command, tmp_path):
    needed = {"steer": ["--feature", "1"], "experiment": [tmp_path / "recipe.toml"]}
    status, _out, err = lensae(command, *needed.get(command, []), "--device", "tpu")
    assert (status, err.splitlines()[0]) == (2, "error: no device named 'tpu'")


def test_sampling_needs_no_float64_on_the_device():
    """The random numbers stay on the CPU, in float64; what comes back is on the device of the logits."""
    from lensae.core.recipe import Sampling
    from lensae.model.generate import sample

    u_B = torch.tensor([0.0, 0.999], dtype=torch.float64)
    logits_BV = torch.tensor([[5.0, 0.0, 4.0], [5.0, 0.0, 4.0]])
    assert sample(logits_BV, u_B, Sampling(temperature=1.0, top_k=2)).tolist() == [0, 2]


def test_doctor_says_what_is_used_and_why(machine):
    from lensae.stages.doctor import examine

    machine(cuda=0, mps=True)
    facts = {fact.name: fact.value for fact in examine()}
    assert facts["device"].startswith("cpu (no CUDA: ") and "--device mps" in facts["mps"]
    assert facts["threads"].startswith(f"{torch.get_num_threads()} of ")
    assert {"float32 products", "bfloat16 products", "cuda"} <= set(facts)
