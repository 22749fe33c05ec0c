"""Contestants of a benchmark, each a process of its own with the Python it needs, whose runs are interleaved.

A contestant's script defines `prepare(settings) -> run` and ends in `serve(prepare)`; `run(case)` does the work of one
case once and returns its figures, `seconds` among them. This file needs the standard library alone: peers run it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")
CONTESTANTS = Path(__file__).resolve().parent / "contestants"


def serve(prepare: Callable[[dict], Callable[[dict], dict]]) -> None:
    """Run once for every case that comes in, a line each; what a library prints goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    run = prepare(json.loads(sys.argv[1]))
    for line in sys.stdin:
        figures = run(json.loads(line))
        figures["peak_memory"] = int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) * 1024
        answers.write(json.dumps(figures) + "\n")
        answers.flush()


class Contestant:
    """One process that waits for cases; its warnings and progress bars go to `log`."""

    def __init__(self, name: str, script: str, settings: dict, log: Path, python: str = sys.executable):
        self.name, self.log = name, log
        command = [python, str(CONTESTANTS / script), json.dumps(settings)]
        pipe = subprocess.PIPE
        with open(log, "a") as errors:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)

    def run(self, case: dict) -> dict:
        """The figures of one run of `case`; raises RuntimeError with the end of its log when the process has died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(case) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"{self.name} stopped:\n{self.log.read_text()[-2000:]}")
        return json.loads(answer)

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def interleaved(contestants: list[Contestant], case: dict, repeats: int) -> dict[str, list[dict]]:
    """The figures of each contestant's runs of one case, one run of each after another, after a warm-up round."""
    figures: dict[str, list[dict]] = {one.name: [] for one in contestants}
    for repeat in range(repeats + 1):
        for one in contestants:
            run = one.run(case)
            if repeat:
                figures[one.name].append(run)
    return figures


@contextmanager
def started(contestants: Iterable[Contestant]) -> Iterator[list[Contestant]]:
    """All of them, stopped at the end."""
    running: list[Contestant] = []
    try:
        for one in contestants:
            running.append(one)
        yield running
    finally:
        for one in running:
            one.stop()
