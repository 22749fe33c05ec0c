"""Every error a person may see: what went wrong, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LensaeError(Exception):
    """Something failed while working (exit status 1)."""

    exit_status = 1

    def __init__(self, what: str, hint: str = ""):
        super().__init__(what)
        self.what = what
        self.hint = hint


class UserError(LensaeError):
    """What the user gave cannot be used (exit status 2)."""

    exit_status = 2


class DamagedError(LensaeError):
    """A file on disk is not what it should be."""


class OtherProcessEnded(LensaeError):
    """This process of several ends because of another one, which may have told what happened."""

    def __init__(self, exit_status: int = 1):
        super().__init__(
            "another process of this run has ended", "what was saved is kept; the same command goes on from there"
        )
        self.exit_status = exit_status


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """The `count` names most like `name`, as a phrase for an error's hint ("" when nothing is at all like it)."""
    found = difflib.get_close_matches(name, list(choices), n=count, cutoff=0.4)
    return f"did you mean {' or '.join(found)}?" if found else ""


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is not among `choices`, with the nearest ones or, if none is near, all of them."""
    choices = sorted(choices)
    hint = nearest(name, choices) or (f"there is {', '.join(choices[:12])}" if choices else "there is none yet")
    return UserError(f"no {kind} named '{name}'", hint)
