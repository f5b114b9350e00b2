"""Checks of configurations and arguments: values of the kinds that a constructor expects, and among those it knows."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

# How alike an unknown key and a keyword must be for the key to be a slip of the pen.
_ALIKE = 0.85


def one_of(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """`value`, when it is among `choices`.

    Raises:
        ValueError: It is not; the message names `name` and the choices.
    """
    known = list(choices)
    if value not in known:
        raise ValueError(f"{name}={value!r}; expected one of {', '.join(map(str, known))}")
    return value


def check_types(built: type, config: Mapping[str, Any]) -> None:
    """Compare a configuration with the annotations of the constructor of `built`; other keys are passed over.

    Raises:
        ValueError: A value is of another type.
    """
    constructor: Any = built.__init__  # type: ignore[misc]
    hints = get_type_hints(constructor)
    for name, value in config.items():
        if name in hints and not _is_a(value, hints[name]):
            expected = inspect.signature(constructor).parameters[name].annotation
            raise ValueError(f"{name}={value!r} in the configuration of a {built.__name__}; expected {expected}")


def check_spelling(built: type, config: Mapping[str, Any]) -> None:
    """Refuse a key that is all but a keyword of the constructor of `built`; keys of other classes are passed over.

    Raises:
        ValueError: A key is misspelt.
    """
    keywords = set(inspect.signature(built.__init__).parameters)  # type: ignore[misc]
    for name in config:
        if name in keywords or name.startswith("_"):
            continue
        if close := difflib.get_close_matches(name, keywords - set(config), n=1, cutoff=_ALIKE):
            raise ValueError(
                f"the configuration of a {built.__name__} has {name!r}, which it does not know; write {close[0]!r}"
            )


def _is_a(value: Any, hint: Any) -> bool:
    """Whether `value`, read from JSON, can stand for the type `hint`.

    Lists stand for tuples, and whole numbers for floats.
    """
    if hint is Any:
        return True
    if get_origin(hint) in (Union, UnionType):
        return any(_is_a(value, option) for option in get_args(hint))
    if get_origin(hint) in (tuple, list):
        kinds = get_args(hint)
        if not isinstance(value, (list, tuple)):
            return False
        if get_origin(hint) is tuple and kinds[-1] is not ... and len(kinds) != len(value):
            return False
        return all(_is_a(item, kinds[0]) for item in value)  # no tuple of mixed types is in use
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, (int, float) if hint is float else hint)
