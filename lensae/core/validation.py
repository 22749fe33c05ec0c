"""Dataclasses from JSON objects that may have been edited by hand: every field is checked, once."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TypeVar

from lensae.core.errors import DamagedError

HINT = "it was edited or cut short"
R = TypeVar("R")

# What JSON has for a field's type, as it is written in the class; what is not here is an object.
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "list": (list,),
    "None": (type(None),),
}


def record_from_json(kind: type[R], value: object, where: str) -> R:
    """A dataclass from a JSON object; keys that are not its fields are left out, objects in it stay dictionaries.

    Raises DamagedError naming `where` and the first field that is missing or not of its type.
    """
    if not isinstance(value, dict):
        raise DamagedError(f"{where} is not an object", HINT)
    given = {}
    for one in fields(kind):  # type: ignore[arg-type]
        if one.name in value:
            given[one.name] = _checked(value[one.name], str(one.type), f"{where} has {one.name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise DamagedError(f"{where} lacks '{one.name}'", HINT)
    return kind(**given)


def _checked(value: object, declared: str, where: str) -> object:
    alternatives = (one.strip().partition("[")[0] for one in declared.split("|"))
    expected = tuple(kind for name in alternatives for kind in _KINDS.get(name, (dict,)))
    negative = isinstance(value, int) and value < 0
    if not isinstance(value, expected) or isinstance(value, bool) or negative:
        raise DamagedError(f"{where} {str(value)[:40]!r}", HINT)
    return value
