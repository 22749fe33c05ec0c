"""The errors that users see: what went wrong, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LensaeError(Exception):
    """A failure while working (exit status 1)."""

    exit_status = 1

    def __init__(self, what: str, hint: str = ""):
        super().__init__(what)
        self.what = what
        self.hint = hint


class UserError(LensaeError):
    """What the user gave cannot be used (exit status 2)."""

    exit_status = 2


class DamagedError(LensaeError):
    """A file on disk is damaged."""


class OtherProcessEnded(LensaeError):
    """This process ends because another one of the same run has failed, which may have reported why."""

    def __init__(self, exit_status: int = 1):
        super().__init__(
            "another process of this run has ended", "what was saved is kept; run the same command again to resume"
        )
        self.exit_status = exit_status


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """The `count` names most like `name`, as a phrase for an error's hint ("" when none is similar)."""
    matches = difflib.get_close_matches(name, list(choices), n=count, cutoff=0.4)
    return f"did you mean {' or '.join(matches)}?" if matches else ""


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is not among `choices`; its hint has the nearest names, or else the first twelve."""
    choices = sorted(choices)
    hint = nearest(name, choices) or (f"known: {', '.join(choices[:12])}" if choices else "none exists yet")
    return UserError(f"no {kind} named '{name}'", hint)
