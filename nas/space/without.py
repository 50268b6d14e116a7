"""A space with fewer options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from nas.errors import SpaceError
from nas.space.holes import Between, OneOf, Repeat, Tied
from nas.space.membership import listing


def without(template: Any, name: str, options: Sequence[Any]) -> Any:
    """`template`, in which no `oneof` of a field called `name` has any of `options`.

    Raises:
        SpaceError: no such hole has one of them, or has no other.
    """
    search = _Search(name, tuple(options), [])
    found = search.visit(template, "")
    seen = [option for hole in search.met for option in hole.options]
    if missing := [option for option in search.options if option not in seen]:
        raise SpaceError(
            f"What is left out must be an option of a `oneof` called `{name}`: got {listing(missing)}; "
            f"there {'are ' + listing(list(dict.fromkeys(seen))) if seen else 'is no such choice'}."
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Search:
    name: str
    options: tuple[Any, ...]
    met: list[OneOf]

    def visit(self, node: Any, field: str) -> Any:
        if isinstance(node, Tied):
            return dataclasses.replace(node, hole=self.visit(node.hole, node.name.rpartition(".")[2]))
        if isinstance(node, Repeat):
            return dataclasses.replace(node, block=self.visit(node.block, field))
        if isinstance(node, OneOf):
            kept = node.options
            if field == self.name:
                self.met.append(node)
                kept = tuple(option for option in kept if option not in self.options)
                if not kept:
                    raise SpaceError(f"`{field}` must keep an option, but {listing(node.options)} all go.")
            return OneOf(tuple(self.visit(option, field) for option in kept))
        if isinstance(node, Between):
            return node
        if isinstance(node, (tuple, list)):
            return tuple(self.visit(item, field) for item in node)
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            names = [f.name for f in dataclasses.fields(node) if f.init]
            return dataclasses.replace(node, **{n: self.visit(getattr(node, n), n) for n in names})
        return node
