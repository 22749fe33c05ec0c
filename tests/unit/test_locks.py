"""Locks of folders: one process at a time, released however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT

from lensae.core.errors import LensaeError
from lensae.core.locks import FolderLock, is_locked

HOLDER = (
    "import sys, time; from pathlib import Path; from lensae.core.locks import FolderLock\n"
    "lock = FolderLock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock of `tmp_path`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_with_a_reason(tmp_path, holder):
    started = time.monotonic()
    with pytest.raises(LensaeError, match=f"another process is training {tmp_path}") as error:
        FolderLock(tmp_path, activity="training", hint="wait")
    assert error.value.hint == "wait" and error.value.exit_status == 1 and time.monotonic() - started < 5
    assert is_locked(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_it_ends_with_its_process(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_locked(tmp_path)
    FolderLock(tmp_path).release()


def test_one_can_wait_for_it(tmp_path):
    first, order = FolderLock(tmp_path), []

    def second() -> None:
        with FolderLock(tmp_path, wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.3)
    order.append("first")
    first.release()
    thread.join(10)
    assert order == ["first", "second"]


def test_released_twice_and_by_another_thread(tmp_path):
    lock = FolderLock(tmp_path / "new" / "folder")
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    lock.release()
    with FolderLock(tmp_path / "new" / "folder"):
        pass


def test_asking_does_not_get_in_the_way(tmp_path):
    """`store list` asks while a process is about to take the lock."""
    with FolderLock(tmp_path):
        pass
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            is_locked(tmp_path)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(50):
            FolderLock(tmp_path).release()
    finally:
        stop.set()
        thread.join()


def test_a_folder_that_was_never_locked(tmp_path):
    assert not is_locked(tmp_path) and not is_locked(Path(tmp_path / "missing"))
    assert not list(tmp_path.iterdir()), "asking leaves nothing behind"
