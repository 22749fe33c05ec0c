"""Commands of lensae in processes of their own.

They are forked from a server that has already imported what commands need (multiprocessing's forkserver), so that one
starts in milliseconds rather than in seconds, and computes with one thread. A test whose point is a fresh interpreter
uses `subprocess` instead. Every process has a time limit, and none outlives the test that started it (the fixture
`no_process_is_left` in conftest.py).
"""

from __future__ import annotations

import contextlib
import multiprocessing.context
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 120.0
STARTED: list[Command] = []


class Command:
    """A command line, or a function, that runs in a process of its own; used as subprocess.Popen is."""

    def __init__(self, function: Callable, *arguments: object, environment: dict[str, object] | None = None):
        self.folder = Path(tempfile.mkdtemp(prefix="lensae-tests-"))
        values = {**os.environ, **{name: str(value) for name, value in (environment or {}).items()}}
        if not hasattr(os, "fork"):
            pytest.skip("processes cannot be forked on this system")
        self.process = _server().Process(target=_run, args=(function, arguments, values, self.folder))
        self.process.start()
        STARTED.append(self)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self.process.exitcode

    @property
    def out(self) -> str:
        """What it has written to stdout so far."""
        return (self.folder / "out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return (self.folder / "err").read_text(encoding="utf-8")

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        return self.returncode

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """The exit status; a process that outlasts `timeout` seconds is killed and fails the test."""
        self.process.join(timeout)
        if self.returncode is None:
            self.kill_all()
            raise TimeoutError(f"no end after {timeout} s\n{self.out}\n{self.err}")
        return self.returncode

    def communicate(self, timeout: float = TIMEOUT_S) -> tuple[str, str]:
        """(stdout, stderr) once it has ended."""
        self.wait(timeout)
        return self.out, self.err

    def finish(self, status: int = 0, timeout: float = TIMEOUT_S) -> tuple[str, str]:
        """(stdout, stderr) once it has ended, with the exit status that is expected."""
        out, err = self.communicate(timeout)
        assert self.returncode == status, f"exit status {self.returncode}\n{out}\n{err}"
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill_all(self) -> None:
        """Kill the process and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.join()

    def rank_pid(self, rank: int) -> int:
        """The process id of one of the processes that torchrun started."""
        return int((self.folder / f"rank-{rank}").read_text())

    def until(self, condition: Callable[[], object], timeout: float = 60.0) -> None:
        """Wait for a condition while the process runs; its end, or `timeout` seconds, fail the test."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.poll() is None and time.monotonic() < end, f"{self.returncode}\n{self.out}\n{self.err}"
            time.sleep(0.01)


def start(*arguments: object, **environment: object) -> Command:
    """Start `python main.py ARGUMENTS`."""
    return Command(_main, *map(str, arguments), environment=environment)


def run(*arguments: object, status: int = 0, **environment: object) -> tuple[str, str]:
    """(stdout, stderr) of `python main.py ARGUMENTS`, which must end with this exit status."""
    return start(*arguments, **environment).finish(status)


def torchrun(function: Callable, *arguments: object, processes: int = 2, **environment: object) -> Command:
    """Start a function in several processes, as `torchrun --standalone --nproc-per-node PROCESSES` starts a script.

    `processes.main` is what main.py does.
    """
    environment = {"CUDA_VISIBLE_DEVICES": "", **environment}
    return Command(_launch, function, processes, *map(str, arguments), environment=environment)


@contextlib.contextmanager
def killed_at_the_end(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """A process of subprocess that does not outlive the block."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def end_all() -> None:
    """Kill what is still running, and remove what the processes wrote."""
    while STARTED:
        command = STARTED.pop()
        if command.poll() is None:
            command.kill_all()
        shutil.rmtree(command.folder, ignore_errors=True)


def main(*arguments: str) -> None:
    """What `python main.py ARGUMENTS` does."""
    from lensae.cli import main as command_line

    sys.argv = ["main.py", *arguments]
    command_line()


_main = main


def _server() -> multiprocessing.context.BaseContext:
    """The server, which is started at its first use with the paths that its imports need.

    It has one thread, as a process with several cannot be forked safely.
    """
    context = multiprocessing.get_context("forkserver")
    settings = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    from multiprocessing import forkserver  # not on Windows

    try:
        context.set_forkserver_preload(["preload"])
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


def _run(function: Callable, arguments: tuple, environment: dict[str, str], folder: Path) -> None:
    """In the new process: its own process group, environment, directory, output."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for stream, name in ((1, "out"), (2, "err")):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream)
    os.environ["LENSAE_TEST_PROCESS"] = str(folder)
    function(*arguments)


def _launch(function: Callable, processes: int, *arguments: str) -> None:
    """torchrun's own launcher, with processes that are forked rather than started from nothing."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, _rank)(function, *arguments)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def _rank(function: Callable, *arguments: str) -> None:
    """One of the processes: returns where a script would end at once, as torch waits for what a function returns."""
    folder = Path(os.environ["LENSAE_TEST_PROCESS"])
    (folder / f"rank-{os.environ['RANK']}").write_text(str(os.getpid()))
    end_at_once = os._exit

    def end(status: int) -> None:
        if status:
            end_at_once(status)
        raise _Ended

    os._exit = end
    try:
        function(*arguments)
    except _Ended:
        pass
    finally:
        os._exit = end_at_once


class _Ended(BaseException):
    """A process ends with status 0."""
