"""Holes: what stands in a space where an architecture has a value.

A space is the user's own dataclass with holes in it (the idea is PyGlove's, Peng et al., 2020). Every
occurrence of a hole is a choice of its own; `tied` makes several occurrences one choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nas.errors import SpaceError


@dataclass(frozen=True)
class OneOf:
    """One of `options`, which may hold holes of their own."""

    options: tuple[Any, ...]

    @property
    def possible(self) -> tuple[Any, ...]:
        """What may stand in the hole; of numbers and tuples, the ends of the range."""
        return self.options

    @property
    def cardinality(self) -> int:
        return len(self.options)

    @property
    def ascending(self) -> tuple[int, ...]:
        """Choices from the smallest to the largest: numbers by value, all else as declared."""
        numbers = all(isinstance(o, (int, float)) for o in self.options)
        return tuple(sorted(range(len(self.options)), key=lambda i: self.options[i] if numbers else i))


@dataclass(frozen=True)
class Repeat:
    """A tuple of `low` to `high` copies of `block`, each with holes of its own."""

    block: Any
    low: int
    high: int

    @property
    def possible(self) -> tuple[Any, ...]:
        return (self.block,) * self.low, (self.block,) * self.high

    @property
    def cardinality(self) -> int:
        return self.high - self.low + 1

    @property
    def ascending(self) -> tuple[int, ...]:
        return tuple(range(self.cardinality))


@dataclass(frozen=True)
class Between:
    """A number between `low` and `high`, on a grid of levels so that it encodes as an integer."""

    low: float
    high: float
    log: bool = False
    cardinality: int = 1001

    @property
    def possible(self) -> tuple[Any, ...]:
        return self.low, self.high

    @property
    def ascending(self) -> tuple[int, ...]:
        return tuple(range(self.cardinality))

    def value(self, level: int) -> float:
        """The number at `level`; the two ends are exact."""
        share = level / (self.cardinality - 1)
        if share in (0, 1):
            return float(self.high if share else self.low)
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return float(self.low + (self.high - self.low) * share)

    def level(self, value: float) -> int:
        """The level nearest to `value`."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(share * (self.cardinality - 1))


@dataclass(frozen=True)
class Tied:
    """All occurrences under one `name` take the same choice."""

    name: str
    hole: OneOf | Repeat | Between

    @property
    def possible(self) -> tuple[Any, ...]:
        return self.hole.possible


Hole = OneOf | Repeat | Between


def oneof(*options: Any) -> Any:
    """A choice among `options`; order those that are not numbers from small to large.

    Example:
        >>> Mlp(ratio=oneof(1, 2, 4))
    """
    if not options:
        raise SpaceError("`oneof` must have at least one option, but got none.")
    if len(set(options)) < len(options):
        raise SpaceError(f"The options of `oneof` must differ, but got {options}.")
    return OneOf(tuple(options))


def repeat(block: Any, low: int, high: int) -> Any:
    """A tuple of `low` to `high` copies of `block`: the depth of a stage.

    Example:
        >>> Stage(width=oneof(32, 48), blocks=repeat(Block(ratio=oneof(1, 2, 4)), 1, 3))
    """
    if not 0 <= low <= high:
        raise SpaceError(f"`0 <= low <= high` must hold for `repeat`, but got (low={low}, high={high}).")
    return Repeat(block, low, high)


def between(low: float, high: float, log: bool = False) -> Any:
    """A number from `low` to `high` (both included); `log` spaces the levels geometrically.

    Example:
        >>> Recipe(learning_rate=between(1e-4, 1e-2, log=True))
    """
    if not low < high or (log and low <= 0):
        law = "`0 < low < high`" if log else "`low < high`"
        raise SpaceError(f"{law} must hold for `between`, but got (low={low}, high={high}).")
    return Between(float(low), float(high), log)


def tied(name: str, hole: Any) -> Any:
    """The same choice wherever a hole tied under `name` stands.

    Example:
        >>> heads = tied("heads", oneof(2, 4))  # every block has as many heads as every other
    """
    if not isinstance(hole, (OneOf, Repeat, Between)):
        raise SpaceError(f"`tied` must be given a hole, but got {hole!r} for name={name!r}.")
    return Tied(name, hole)


def is_hole(value: Any) -> bool:
    return isinstance(value, (OneOf, Repeat, Between, Tied))
