"""What the trainers' scripts share: the rows, the clock, and the figures on held-out rows, the same code for all.

A script defines `build(job, batches) -> Training`; `batches()` gives the pass's batches of raw activations in the order
of its seed, for what has to be estimated beforehand. Needs numpy, torch and safetensors alone: peers run it.
Shapes: B rows, D d_model, F features.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from interleaved_runs import serve

WARM_STEPS = 3
MASSIVE = 10  # a row in ten thousand has fifty times the usual norm, and a fifth of all variance


@dataclass(frozen=True)
class Job:
    """One training: `steps` is the length of the pass, `lr_factor` multiplies the documented learning rate; `penalty`
    replaces the documented sparsity coefficient of a family that has no k (None: as documented). `seed` decides the
    start and the order of the batches."""

    family: str
    d_model: int
    d_sae: int
    k: int
    batch: int
    steps: int
    lr_factor: float = 1.0
    penalty: float | None = None
    seed: int = 0


class Training(Protocol):
    """A training that goes a step at a time, as the tool's own loop does. It takes and gives raw activations; whatever
    normalisation there is, is its own.

    After `finish`, `ways` has how it encodes, by name: "trained", and "saved" where what is kept for use differs; each
    gives features (B, F) and reconstruction (B, D).
    """

    lr: float
    penalty: float | None
    ways: dict[str, Callable]

    def step(self, x_BD) -> None:
        """Learn from one batch."""

    def finish(self) -> None:
        """What is done once after the last step."""

    def save(self, folder: Path) -> None:
        """Write what is kept for use, as an SAE in SAELens' layout that takes raw activations."""


def write_sae(folder: Path, architecture: str, tensors: dict, **more) -> None:
    """cfg.json and sae_weights.safetensors, by the names that SAELens 6 has for the tensors of an architecture."""
    from safetensors.torch import save_file

    d_in, d_sae = tensors["W_enc"].shape
    cfg = {"architecture": architecture, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu"}
    cfg |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none", **more}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg | {"metadata": {}}))
    plain = {name: tensor.detach().float().clone().contiguous() for name, tensor in tensors.items()}
    save_file(plain, folder / "sae_weights.safetensors")


class Rows:
    """The activations in a .npy file, mapped anew for every batch, so that none stays in a process's memory."""

    def __init__(self, path: str, training: int, batch: int, seed: int = 0):
        self.path, self.training, self.batch = path, training, batch
        self.order = np.random.default_rng(seed).permutation(training // batch)

    def __getitem__(self, number: int):
        """Training batch `number` (B, D), round and round."""
        start = int(self.order[number % len(self.order)]) * self.batch
        return self._read(start, start + self.batch)

    def heldout(self) -> Iterator:
        """The rows behind the training rows."""
        total = np.load(self.path, mmap_mode="r").shape[0]
        for start in range(self.training, total, self.batch):
            yield self._read(start, min(total, start + self.batch))

    def _read(self, start: int, stop: int):
        import torch

        return torch.from_numpy(np.array(np.load(self.path, mmap_mode="r")[start:stop]))


def serve_trainings(build: Callable, around: Callable[[], AbstractContextManager] = nullcontext) -> None:
    """Answer cases of both parts; `around` is in force while anything runs."""

    def prepare(settings: dict):
        import torch

        if settings.get("precision"):
            torch.set_float32_matmul_precision(settings["precision"])
        kept: dict[Job, list] = {}

        def run(case: dict) -> dict:
            job = Job(**case["job"])
            rows = Rows(settings["rows"], settings["training"], job.batch, job.seed)
            with around():
                if case["part"] == "quality":
                    return quality(build, job, rows, case.get("folder"))
                if case["part"] == "pass":
                    return whole_pass(build, job, rows)
                if case["part"] == "reached":
                    return reached(*kept[job], rows, job)
                return speed(build, job, rows, kept, case["steps"])

        return run

    serve(prepare)


def started(build: Callable, job: Job, rows: Rows) -> Training:
    """A training at its beginning, the same random numbers each time."""
    import torch

    torch.manual_seed(job.seed)
    return build(job, lambda: (rows[i] for i in range(job.steps)))


def speed(build: Callable, job: Job, rows: Rows, kept: dict, steps: int) -> dict:
    """Seconds of the next `steps` steps of a training that is continued from run to run."""
    if job not in kept:
        kept[job] = [started(build, job, rows), 0]
        learn(kept[job], rows, WARM_STEPS)
    before = busy_seconds()
    seconds = learn(kept[job], rows, steps)
    others = before and (busy_seconds()[0] - before[0]) - (busy_seconds()[1] - before[1])
    return {"seconds": seconds, "tokens": steps * job.batch, "others": others and max(0.0, others) / seconds}


def reached(training: Training, steps: int, rows: Rows, job: Job) -> dict:
    """What the training whose steps were timed has come to, as it is kept for use; that ends it."""
    training.finish()
    encode = training.ways.get("saved", training.ways["trained"])
    figures = {"tokens_seen": steps * job.batch}
    if hasattr(training, "measure"):
        clock, heldout = time.perf_counter(), list(rows.heldout())
        training.measure(heldout)
        figures["heldout_rows_per_second"] = sum(map(len, heldout)) / (time.perf_counter() - clock)
    return figures | measured(encode, rows, job.d_sae)


def whole_pass(build: Callable, job: Job, rows: Rows) -> dict:
    """One pass over the training rows, and what is kept of it written to disk."""
    clock = time.perf_counter()
    training = started(build, job, rows)
    learn([training, 0], rows, job.steps)
    training.finish()
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder) / "sae")
    return {"seconds": time.perf_counter() - clock, "tokens": job.steps * job.batch}


def busy_seconds() -> tuple[float, float] | None:
    """CPU seconds that the machine and this process have spent so far (None where they cannot be told): what others
    took meanwhile shows a disturbed measurement."""
    machine = Path("/proc/stat")
    if not machine.is_file():
        return None
    user, nice, system, _idle, _wait, *interrupts = map(int, machine.read_text().split("\n")[0].split()[1:8])
    busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return busy, time.process_time()


def learn(state: list, rows: Rows, steps: int) -> float:
    """Seconds of `steps` more steps, reading included; `state` is the training and its number of steps so far."""
    training, first = state
    clock = time.perf_counter()
    for number in range(first, first + steps):
        training.step(rows[number])
    state[1] += steps
    return time.perf_counter() - clock


def quality(build: Callable, job: Job, rows: Rows, folder: str | None) -> dict:
    """One pass over the training rows, then the figures on the others; the SAE is kept in `folder`."""
    training = started(build, job, rows)
    seconds = learn([training, 0], rows, job.steps)
    training.finish()
    if folder:
        training.save(Path(folder))
    found = {way: measured(encode, rows, job.d_sae) for way, encode in training.ways.items()}
    about = {"lr": training.lr, "penalty": training.penalty, "tokens": job.steps * job.batch, "seconds": seconds}
    return about | found


class Moments:
    """What explained variance 1 - E||x - x_hat||^2 / (E||x||^2 - ||E x||^2) is made of."""

    def __init__(self):
        self.count, self.error, self.square, self.total_D = 0, 0.0, 0.0, 0.0

    def add(self, x_BD: np.ndarray, x_hat_BD: np.ndarray) -> None:
        """Take rows in (float64)."""
        self.count += len(x_BD)
        self.error += float(np.square(x_BD - x_hat_BD).sum())
        self.square += float(np.square(x_BD).sum())
        self.total_D = self.total_D + x_BD.sum(0)

    def explained(self) -> float | None:
        """The figure; None when it is no number."""
        variance = self.square / self.count - float(np.square(self.total_D / self.count).sum())
        found = 1 - self.error / self.count / variance
        return found if math.isfinite(found) else None


def measured(encode: Callable, rows: Rows, d_sae: int) -> dict:
    """Explained variance, L0, and the share of features that never fire, over the held-out rows together; "typical"
    is the explained variance of the rows up to MASSIVE times the median norm."""
    import torch

    limit = MASSIVE * float(np.median(np.concatenate([x_BD.norm(dim=1).numpy() for x_BD in rows.heldout()])))
    every, typical = Moments(), Moments()
    active, fired_F = 0, np.zeros(d_sae, bool)
    with torch.no_grad():
        for x_BD in rows.heldout():
            features_BF, x_hat_BD = (part.float().numpy() for part in encode(x_BD))
            x = x_BD.numpy().astype(np.float64)
            every.add(x, x_hat_BD)
            usual = np.linalg.norm(x, axis=1) <= limit
            typical.add(x[usual], x_hat_BD[usual])
            on_BF = features_BF != 0
            active += int(on_BF.sum())
            fired_F |= on_BF.any(0)
    return {
        "explained_variance": every.explained(),
        "typical": typical.explained(),
        "massive_rows": every.count - typical.count,
        "l0": active / every.count,
        "dead": 1 - float(fired_F.mean()),
    }
