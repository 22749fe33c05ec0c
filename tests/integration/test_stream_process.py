"""A process that reads a training stream ends, whether it is interrupted or leaves the stream unread."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from helpers import HOOK, documents, write_set

SCRIPT = (
    "import sys, time; from pathlib import Path\n"
    "from lensae.core.paths import read_set; from lensae.store.reader import SetReader\n"
    "from lensae.store.stream import RowStream\n"
    "assert 'torch' not in sys.modules\n"
    "reader = SetReader(read_set(Path(sys.argv[1])))\n"
    "batches = RowStream(reader, reader.everything(), 20, 0, shuffle_rows=60).epoch(0)\n"
    "next(batches)\n"
    "print('go', flush=True)\n"
)


@pytest.fixture
def stream_folder(tmp_path) -> Path:
    return write_set(tmp_path / "toy" / HOOK, documents(60))


def start(code: str, folder: Path) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=processes.ROOT, **pipes)


def test_an_interrupted_process_ends(stream_folder):
    with processes.killed_at_the_end(start(SCRIPT + "for _ in batches: time.sleep(60)\n", stream_folder)) as process:
        assert process.stdout.readline() == "go\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err and process.returncode != 0


def test_a_process_that_leaves_the_stream_unread_ends(stream_folder):
    with processes.killed_at_the_end(start(SCRIPT, stream_folder)) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "go\n", "")
