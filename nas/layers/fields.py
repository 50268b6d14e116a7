"""Fields of choices: what a search may vary, and what a value must be, checked when a choice is made."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any

import numpy as np

from nas.errors import SpaceError

Law = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words, and whether one is."""


def gene(
    *values: Any,
    default: Any = MISSING,
    kw_only: Any = MISSING,
    least: float | None = None,
    odd: bool = False,
    among: Collection[Any] = (),
) -> Any:
    """A field that a search may vary.

    `values`, from small to large, are those that contract tests, the list of choices and default spaces
    use; an architecture may hold others, as far as `Checked` lets them.

    Args:
        least: smallest number; default: 1 of an int, anything above 0 of a float.
        odd: whether only odd numbers work, as of kernels with a centre.
        among: all values that there are.

    Example:
        >>> size: int = gene(2, 4, 8)
    """
    metadata = {"values": values, "least": least, "odd": odd, "among": tuple(among)}
    return field(default=default, kw_only=kw_only, metadata=metadata)


def setting(
    default: Any,
    *,
    kw_only: bool = True,
    least: float | None = None,
    odd: bool = False,
    among: Collection[Any] = (),
) -> Any:
    """A field that default spaces leave as it is; the rest as of `gene`."""
    metadata = {"least": least, "odd": odd, "among": tuple(among)}
    return field(default=default, kw_only=kw_only, metadata=metadata)


def genes_of(choice: type) -> dict[str, tuple[Any, ...]]:
    """The fields of a choice that a search may vary, with their values."""
    return {f.name: f.metadata["values"] for f in fields(choice) if "values" in f.metadata}


class Checked:
    """A dataclass whose fields are held against their annotations when it is made.

    An int is 1 or more, a float is finite and above 0, unless its field says otherwise; a dataclass is of
    the class it says; of a hole, everything it may become is checked, so that no value that cannot be built
    enters a space.

    Raises:
        SpaceError: names the field, what it must be, and what it is.
    """

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, (must, holds) in _laws_of(cls):
            for value in possible(getattr(self, name)):
                if not holds(value):
                    remedy = " Make it a number of Python's own." if isinstance(value, np.generic) else ""
                    raise SpaceError(f"`{name}` of {cls.__name__} must be {must}: got {value!r}.{remedy}")


def possible(value: Any) -> Iterator[Any]:
    """All that may stand where `value`, a hole perhaps, does."""
    if not hasattr(value, "possible"):
        yield value
        return
    for other in value.possible:
        yield from possible(other)


@cache
def _laws_of(cls: Any) -> tuple[tuple[str, Law], ...]:
    found = ((f.name, _law(_hint(cls, f.name), f.metadata)) for f in fields(cls))
    return tuple((name, law) for name, law in found if law is not None)


def _hint(cls: type, name: str) -> Any:
    """The type that a field is annotated with; Any where its names cannot be found."""
    owner = next(c for c in cls.__mro__ if name in inspect.get_annotations(c))
    holder = type(owner.__name__, (), {"__annotations__": {name: inspect.get_annotations(owner)[name]}})
    holder.__module__ = owner.__module__
    try:
        return typing.get_type_hints(holder)[name]
    except NameError:  # of a class inside a function, say
        return Any


def _law(hint: Any, metadata: Any) -> Law | None:
    """The law of a type, or None where anything goes."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        laws = [_law(part, metadata) for part in typing.get_args(hint)]
        known = [law for law in laws if law is not None]
        return _any_of(known) if len(known) == len(laws) else None
    if typing.get_origin(hint) is tuple:
        return _items(_law(typing.get_args(hint)[0], metadata))
    if hint is NoneType:
        return "None", lambda value: value is None
    if metadata.get("among"):
        return _among(metadata["among"])
    if hint is bool:
        return "True or False", lambda value: isinstance(value, bool)
    if hint is int:
        return _whole(metadata.get("least"), metadata.get("odd", False))
    if hint is float:
        return _number(metadata.get("least"))
    if hint is Any or not isinstance(hint, type):
        return None
    article = "an" if hint.__name__[0] in "AEIO" else "a"
    return f"{article} {hint.__name__}", lambda value: isinstance(value, hint)


def _whole(least: float | None, odd: bool) -> Law:
    lowest = 1 if least is None else least

    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= lowest

    if odd:
        return "an odd number, such as 3 or 5", lambda value: holds(value) and value % 2 == 1
    return f"a whole number of at least {lowest:g}", holds


def _number(least: float | None) -> Law:
    def holds(value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return value > 0 if least is None else value >= least

    return "a number above 0" if least is None else f"a number of at least {least:g}", holds


def _among(values: tuple[Any, ...]) -> Law:
    def holds(value: Any) -> bool:
        return any(type(value) is type(known) and value == known for known in values)

    return f"one of {', '.join(map(str, values))}", holds


def _any_of(laws: list[Law]) -> Law:
    return " or ".join(must for must, _ in laws), lambda value: any(holds(value) for _, holds in laws)


def _items(law: Law | None) -> Law:
    if law is None:
        return "a tuple", lambda value: isinstance(value, tuple)
    must, holds = law

    def all_hold(values: Any) -> bool:
        return isinstance(values, tuple) and all(holds(v) for item in values for v in possible(item))

    return f"a tuple, each item {must}", all_hold
