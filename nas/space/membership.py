"""Which values a template can become."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from nas.errors import SpaceError
from nas.space.genes import Gene
from nas.space.holes import Between, OneOf, Repeat, Tied, is_hole


def matches(node: Any, value: Any) -> bool:
    """Whether `value` is something that `node`, with its holes, can become."""
    if isinstance(node, Tied):
        return matches(node.hole, value)
    if isinstance(node, OneOf):
        return any(matches(option, value) for option in node.options)
    if isinstance(node, Repeat):
        in_range = isinstance(value, tuple) and node.low <= len(value) <= node.high
        return in_range and all(matches(node.block, item) for item in value)
    if isinstance(node, Between):
        return isinstance(value, (int, float)) and node.low <= value <= node.high
    if isinstance(node, (tuple, list)):
        same = isinstance(value, tuple) and len(value) == len(node)
        return same and all(map(matches, node, value))
    if dataclasses.is_dataclass(node):
        names = [f.name for f in dataclasses.fields(node)]
        return type(node) is type(value) and all(matches(getattr(node, n), getattr(value, n)) for n in names)
    return bool(node == value)


def overlap(a: Any, b: Any) -> bool:
    """Whether two templates can become the same value."""
    a, b = (n.hole if isinstance(n, Tied) else n for n in (a, b))
    if isinstance(a, OneOf) or isinstance(b, OneOf):
        lefts, rights = ((n.options if isinstance(n, OneOf) else (n,)) for n in (a, b))
        return any(overlap(left, right) for left in lefts for right in rights)
    if isinstance(a, Repeat) and isinstance(b, Repeat):
        return a.low <= b.high and b.low <= a.high and (overlap(a.block, b.block) or min(a.low, b.low) == 0)
    if isinstance(a, Between) and isinstance(b, Between):
        return a.low <= b.high and b.low <= a.high
    if is_hole(a) or is_hole(b):
        return matches(a, b) or matches(b, a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(overlap, a, b))
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        names = [f.name for f in dataclasses.fields(a)]
        return all(overlap(getattr(a, n), getattr(b, n)) for n in names)
    return bool(a == b)


def require_disjoint_options(genes: Sequence[Gene]) -> None:
    for gene in genes:
        options = gene.hole.options if isinstance(gene.hole, OneOf) else ()
        for i, option in enumerate(options):
            for earlier in options[:i]:
                if overlap(earlier, option):
                    raise SpaceError(
                        f"The options of `{gene.name}` must not overlap, or an architecture would have two "
                        f"encodings: got {earlier!r} and {option!r}. Make one of them narrower."
                    )


def listing(options: Sequence[Any]) -> str:
    return ", ".join(type(o).__name__ if dataclasses.is_dataclass(o) else repr(o) for o in options)
