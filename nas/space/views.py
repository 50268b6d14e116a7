"""Partial architectures that note what is read of them.

A rule (a constraint, a cost) is a plain function of a value and its context. Run on a view, it tells
which genes it depends on; everything else about it can then be remembered. That one device makes
counting exact, sampling legal and costs of 100,000 architectures cheap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from nas.architecture import join
from nas.errors import SpaceError
from nas.space.genes import Condition, Flat
from nas.space.holes import OneOf, Repeat, Tied, is_hole


@dataclass(frozen=True)
class Context:
    """Where a value stands: its path, and what is around it.

    `ancestors` go from the root of the architecture to the parent. Earlier siblings are reached through
    them (``context.parent.blocks[0]``); a constraint must not read what comes later. A field whose metadata
    are `FIRST` comes before its siblings.
    """

    path: str
    ancestors: tuple[Any, ...]

    @property
    def root(self) -> Any:
        return self.ancestors[0]

    @property
    def parent(self) -> Any:
        return self.ancestors[-1]

    def index(self, field: str) -> int:
        """The position below `field`: ``index("stages") == 1`` at ``stages.1.blocks.0``."""
        parts = self.path.split(".")
        return int(parts[parts.index(field) + 1])


class Reader:
    """Reads genes of one (partial) assignment and keeps the set of those that were read."""

    def __init__(self, flat: Flat, genes: Sequence[int], decided: int) -> None:
        self.flat = flat
        self.genes = genes
        self.decided = decided
        self.reads: set[int] = set()

    def gene(self, index: int) -> int:
        if index >= self.decided:
            raise SpaceError(
                f"A constraint must read its own value, ancestors and earlier siblings only, but "
                f"`{self.flat.genes[index].name}` is chosen later."
            )
        self.reads.add(index)
        return int(self.genes[index])

    def holds(self, condition: Condition) -> bool:
        return all(low <= self.gene(g) <= high for g, low, high in condition)

    def resolve(self, node: Any, path: str) -> Any:
        """What stands at `path`: a value, or a view where something in it is still a hole."""
        if isinstance(node, Tied):
            return self._filled(node.hole, self.flat.at[path, id(node)], path)
        if is_hole(node):
            return self._filled(node, self.flat.at[path, id(node)], path)
        if isinstance(node, (tuple, list)):
            return _Items(self, [(item, join(path, i)) for i, item in enumerate(node)])
        if not dataclasses.is_dataclass(node) or id(node) in self.flat.plain:
            return node
        return View(self, node, path)

    def _filled(self, hole: Any, gene: int, path: str) -> Any:
        choice = self.gene(gene)
        if isinstance(hole, OneOf):
            return self.resolve(hole.options[choice], path)
        if isinstance(hole, Repeat):
            return _Items(self, [(hole.block, join(path, k)) for k in range(hole.low + choice)])
        return hole.value(choice)


class View:
    """Looks like the dataclass `template` with its holes filled; reading a field notes its genes."""

    __slots__ = ("_path", "_reader", "_template")

    def __init__(self, reader: Reader, template: Any, path: str) -> None:
        self._reader, self._template, self._path = reader, template, path

    @property
    def __class__(self) -> type:  # so that isinstance and match statements see the user's class
        return type(self._template)

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise TypeError("A view keeps the class of its template.")

    def __getattr__(self, name: str) -> Any:
        if name in _names(self.__class__):
            return self._reader.resolve(getattr(self._template, name), join(self._path, name))
        attribute = getattr(type(self._template), name)
        if isinstance(attribute, property) and attribute.fget:
            return attribute.fget(self)  # the user's properties and methods read through the view
        return attribute.__get__(self) if callable(attribute) else attribute

    def __repr__(self) -> str:
        return repr(materialise(self))

    def __eq__(self, other: object) -> bool:
        return bool(materialise(self) == materialise(other))

    def __hash__(self) -> int:
        return hash(materialise(self))


class _Items(Sequence[Any]):
    """A tuple of views."""

    def __init__(self, reader: Reader, items: list[tuple[Any, str]]) -> None:
        self._reader, self._items = reader, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self._reader.resolve(*item) for item in self._items[index])
        return self._reader.resolve(*self._items[index])

    def __iter__(self) -> Iterator[Any]:
        return (self._reader.resolve(*item) for item in self._items)


def materialise(value: Any, omit: frozenset[str] = frozenset()) -> Any:
    """The plain value behind a view; reads everything in it but fields called as in `omit`, which get
    their defaults."""
    if type(value) is View or (omit and dataclasses.is_dataclass(value)):
        cls = value.__class__
        return cls(**{n: materialise(getattr(value, n), omit) for n in _names(cls) if n not in omit})
    if isinstance(value, (tuple, list, _Items)):
        return tuple(materialise(v, omit) for v in value)
    return value


@cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))
