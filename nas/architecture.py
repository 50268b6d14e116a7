"""Architectures are values: frozen dataclasses of numbers, strings, tuples and other such dataclasses.

This file gives every such value a JSON form and a name. The JSON form omits defaults, so that a field
added later leaves the names of older architectures alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nas.errors import SpaceError

TYPE = "type"


def to_json(value: Any) -> Any:
    """Plain JSON data for `value`: a class tag under ``"type"``, defaults omitted, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        kept = {k: v for k, v in fields.items() if v != _defaults(type(value)).get(k, _MISSING)}
        return {TYPE: type(value).__name__} | {k: to_json(v) for k, v in kept.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise SpaceError(
        f"An architecture must consist of dataclasses, tuples, numbers, strings and None, "
        f"but got {value!r} of type {type(value).__name__}."
    )


def from_json(data: Any, classes: Mapping[str, type], path: str = "") -> Any:
    """The value that `to_json` wrote. Builds only what `classes` (by name) allows.

    Raises:
        SpaceError: an unknown class or field, or a field that is missing; names its path.
    """
    if isinstance(data, list):
        return tuple(from_json(v, classes, join(path, i)) for i, v in enumerate(data))
    if not isinstance(data, Mapping):
        return data
    tag = str(data.get(TYPE))
    if tag not in classes:
        raise SpaceError(
            f"`{path or 'architecture'}` must be one of the classes that the space reaches: "
            f"got {TYPE}={tag!r}. Use one of {', '.join(sorted(classes))}."
        )
    cls = classes[tag]
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := set(data) - known - {TYPE}:
        raise SpaceError(
            f"`{path or 'architecture'}` must hold fields of {tag} only: got {sorted(unknown)}. "
            f"Known are {sorted(known)}."
        )
    fields = {k: from_json(v, classes, join(path, k)) for k, v in data.items() if k != TYPE}
    if missing := known - set(fields) - set(_defaults(cls)):
        raise SpaceError(f"`{path or 'architecture'}` of {tag} lacks the fields {sorted(missing)}.")
    return cls(**fields)


def canonical(value: Any) -> str:
    """The one text of `value` from which its name is computed."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"))


def architecture_id(architecture: Any) -> str:
    """12 hex digits of the SHA-256 of the canonical JSON."""
    return digest(canonical(architecture))


def digest(text: str) -> str:
    """12 hex digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def join(path: str, part: str | int) -> str:
    """`path` one step further down: ``join("stages", 1) == "stages.1"``."""
    return f"{path}.{part}" if path else str(part)


def nested(value: Any) -> Iterator[Any]:
    """`value` and everything inside it, depth first."""
    yield value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from nested(getattr(value, field.name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from nested(item)


def reachable_classes(template: Any) -> dict[str, type]:
    """The dataclasses in `template` and in the annotations of their fields, by name.

    Raises:
        SpaceError: two different classes share a name, so that JSON could not tell them apart.
    """
    return reachable_from([type(v) for v in nested(template) if dataclasses.is_dataclass(v)])


def reachable_from(classes: Iterable[type]) -> dict[str, type]:
    """The dataclasses in `classes` and in the annotations of their fields, by name; raises as above."""
    found: dict[str, type] = {}
    todo = list(classes)
    while todo:
        cls = todo.pop()
        if found.get(cls.__name__, cls) is not cls:
            raise SpaceError(f"Classes of a space must have names of their own: two are {cls.__name__}.")
        if cls.__name__ not in found:
            found[cls.__name__] = cls
            todo += [c for hint in _hints(cls).values() for c in _classes_in(hint)]
    return found


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:  # a class that was defined inside a function, under postponed annotations
        return {}


def _classes_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    elif isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        for argument in typing.get_args(hint):
            yield from _classes_in(argument)


_MISSING = object()


def _defaults(cls: type) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return defaults
