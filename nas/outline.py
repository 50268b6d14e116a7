"""An architecture's JSON as text that a person can read.

Works on the JSON alone, so that a report or a page needs neither the user's classes nor torch:

>>> print(outline({"type": "Net", "width": 32, "blocks": [{"type": "Attention", "heads": 2}] * 3}))
Net(width=32)
└─ blocks.0–2: Attention(heads=2)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from itertools import groupby
from typing import Any

from nas.architecture import TYPE, to_json
from nas.errors import SpaceError


def plain(architecture: Any) -> Any:
    """The JSON of an architecture; JSON as it is.

    Raises:
        SpaceError: it is neither.
    """
    if isinstance(architecture, Mapping):
        return architecture
    if not is_dataclass(architecture) or isinstance(architecture, type):
        raise SpaceError(f"An architecture must be a dataclass, or the JSON of one: got {architecture!r}.")
    return to_json(architecture)


def outline(architecture: Any) -> str:
    """An architecture, or its JSON, as a tree, one line a part; equal neighbours in a list share a line."""
    architecture = plain(architecture)
    return "\n".join([_label(architecture), *_branches(architecture)])


def one_line(value: Any) -> str:
    """A value with all that is in it: ``Block(mixer=Global(heads=4), ffn=Mlp(ratio=2))``."""
    if isinstance(value, list):
        return f"[{', '.join(map(one_line, value))}]"
    if not isinstance(value, Mapping):
        return str(value)
    kind = str(value.get(TYPE, ""))
    fields = ", ".join(f"{name}={one_line(part)}" for name, part in value.items() if name != TYPE)
    return f"{kind}({fields})" if fields or not kind else kind


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, value) of every leaf: ``("stages.0.width", "64")``; a class is a leaf named `type`."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from flatten(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from flatten(part, f"{path}.{index}" if path else str(index))
    else:
        yield path, str(value)


def _label(value: Any) -> str:
    """A part on one line: its class, and in brackets what needs no line of its own."""
    if not isinstance(value, Mapping):
        return str(value)
    inline = ", ".join(f"{k}={_short(v)}" for k, v in value.items() if k != TYPE and _is_short(v))
    kind = str(value.get(TYPE, ""))
    return f"{kind}({inline})" if inline or not kind else kind


def _branches(value: Any) -> list[str]:
    """The lines below a part, drawn with box characters."""
    children = list(_children(value))
    lines: list[str] = []
    for position, (name, child) in enumerate(children):
        last = position == len(children) - 1
        lines.append(f"{'└─' if last else '├─'} {name}: {_label(child)}")
        lines += [("   " if last else "│  ") + line for line in _branches(child)]
    return lines


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts that need lines of their own, named as in paths; equal list items as one."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            if name != TYPE and not _is_short(part):
                yield from _items(name, part) if isinstance(part, list) else [(name, part)]


def _items(name: str, parts: list[Any]) -> Iterator[tuple[str, Any]]:
    index = 0
    for item, run in groupby(parts):
        end = index + len(list(run)) - 1
        yield f"{name}.{index}" if end == index else f"{name}.{index}–{end}", item
        index = end + 1


def _is_short(value: Any) -> bool:
    """Whether a value fits on its parent's line: a scalar, scalars, a class without fields."""
    if isinstance(value, Mapping):
        return set(value) <= {TYPE}
    return not isinstance(value, list) or all(not isinstance(v, (list, Mapping)) for v in value)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get(TYPE, ""))
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value)
