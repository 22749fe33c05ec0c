"""The command line from a checkout: `python main.py --help` (identical to the console command `lensae`).

Any Python will do: when the one that runs this has no dependencies installed, the checkout's .venv takes over.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

VENV = Path(__file__).resolve().parent / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run_in_venv() -> None:
    """Run the same command under .venv, or say how to make it."""
    if not PYTHON.exists() or Path(sys.prefix) == VENV:
        sys.exit("error: lensae's dependencies are not installed\n  make setup")
    command = [str(PYTHON), *sys.argv]
    if os.name == "nt":  # execv on Windows returns to the shell before the new process has ended
        sys.exit(subprocess.call(command))
    os.execv(PYTHON, command)


if __name__ == "__main__":
    if importlib.util.find_spec("transformer_lens") is None:
        run_in_venv()
    from lensae.cli import main

    main()
