"""The command line from a checkout: `python main.py --help` (identical to the console command `lensae`).

Any Python will do: when the one that runs this has no dependencies installed, the checkout's .venv takes over.
"""

import importlib.util
import os
import sys
from pathlib import Path

VENV = Path(__file__).resolve().parent / ".venv" / "bin" / "python"


def hand_over() -> None:
    """Run again under .venv, or say how to make it."""
    if VENV.exists() and Path(sys.prefix) != VENV.parents[1]:
        os.execv(VENV, [str(VENV), *sys.argv])
    sys.exit("error: lensae's dependencies are not installed\n  make setup")


if __name__ == "__main__":
    if importlib.util.find_spec("transformer_lens") is None:
        hand_over()
    from lensae.cli import main

    main()
