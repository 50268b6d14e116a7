"""Fields of settings, held against their annotations."""

from __future__ import annotations

import dataclasses
import math
import typing
from functools import cache
from types import UnionType
from typing import Any, Literal

from nas.errors import NasError, RunError


def require_types(settings: Any, inside: str, error: type[NasError] = RunError) -> None:
    """Holds the fields of a dataclass against their annotations; a number may be whole, and NaN is none.

    Args:
        inside: the path of `settings`, with a dot at its end.

    Raises:
        NasError: of class `error`; names the field, what it must be, and what it is.
    """
    cls: Any = type(settings)
    for name, hint in _hints(cls).items():
        value = getattr(settings, name)
        if not _fits(value, hint):
            remedy = " Make it a number of Python's own." if type(value).__module__ == "numpy" else ""
            raise error(f"`{inside}{name}` must be {_words(hint)}: got {value!r}.{remedy}")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple and parts[-1] is ...:
        return isinstance(value, tuple) and all(_fits(item, parts[0]) for item in value)
    if origin is tuple:
        fits = isinstance(value, tuple) and len(value) == len(parts)
        return fits and all(map(_fits, value, parts))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    type(None): "None",
    Any: "anything",
}


def _words(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return " or ".join(map(_words, parts))
    if origin is Literal:
        return f"{', '.join(map(str, parts[:-1]))} or {parts[-1]}"
    if origin is tuple and parts[-1] is ...:
        return f"a tuple, each item {_words(parts[0])}"
    if origin is tuple:
        return f"a tuple ({', '.join(map(_words, parts))})"
    return WORDS.get(hint) or f"an object of {getattr(hint, '__name__', hint)}"
