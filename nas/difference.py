"""What differs between two architectures, as text that a person can read; works on their JSON alone.

>>> print(difference({"width": 32, "hidden": [4]}, {"width": 64, "hidden": [4, 8]}))
width: 32 → 64
+ hidden.1: 8
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from nas.outline import TYPE, flatten, one_line, plain

SAME = "no difference"
ABSENT = object()
BITS = {TYPE: "Bits", "weight": 32}  # what `bits` is where it is left out, as all defaults are

Line = tuple[str, str, str]  # sign, path from here, what is there
Match = tuple[int | None, int | None]  # indices of two items that stand for each other; None: no other


def difference(a: Any, b: Any) -> str:
    """A line for each part of `a` that is another in `b`, under its path; "no difference" for equals. Takes
    architectures or their JSON.

    ``path: old → new`` is a change, ``+`` an item of a list that only `b` has, ``-`` one that only `a`
    has. Indices are those in `b`, but for ``-``; neighbours that change alike share a line, as in
    ``stages.0.blocks.1–3.mixer.heads: 2 → 4``. A default, which the JSON leaves out, is "default".
    """
    lines = (f"{sign}{path}: {text}" if path else text for sign, path, text in _changes(plain(a), plain(b)))
    return "\n".join(lines) or SAME


def _changes(a: Any, b: Any) -> Iterator[Line]:
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.get(TYPE) == b.get(TYPE):
        for name in dict.fromkeys([*a, *b]):
            for sign, path, text in _changes(*_values(name, a, b)):
                yield sign, _joined(name, path), text
    elif isinstance(a, list) and isinstance(b, list):
        yield from _items(a, b)
    elif a != b:
        yield "", "", " → ".join("default" if value is ABSENT else one_line(value) for value in (a, b))


def _values(name: str, *parts: Mapping[str, Any]) -> list[Any]:
    """The values of a field in both parts."""
    found = [part.get(name, ABSENT) for part in parts]
    is_class = any(isinstance(value, Mapping) and value.get(TYPE) == BITS[TYPE] for value in found)
    return [BITS if value is ABSENT and name == "bits" and is_class else value for value in found]


def _items(a: list[Any], b: list[Any]) -> Iterator[Line]:
    """The changes of two lists; equal ones of neighbours are one line."""
    found = [(match, _of_match(a, b, match)) for match in _alignment(a, b)]

    def alike(numbered: tuple[int, tuple[Match, list[Line]]]) -> tuple[Any, ...]:
        position, ((i, j), lines) = numbered
        return (lines, i is None, j is None) if lines else (position,)

    for _, run in groupby(enumerate(found), alike):
        matches = [entry for _, entry in run]
        (first, lines), (last, _) = matches[0], matches[-1]
        side = 0 if first[1] is None else 1
        index = str(first[side]) if first == last else f"{first[side]}–{last[side]}"
        for sign, path, text in lines:
            yield sign, _joined(index, path), text


def _of_match(a: list[Any], b: list[Any], match: Match) -> list[Line]:
    i, j = match
    if i is None or j is None:
        return [("- ", "", one_line(a[i]))] if i is not None else [("+ ", "", one_line(b[j or 0]))]
    return list(_changes(a[i], b[j]))


def _alignment(a: list[Any], b: list[Any]) -> list[Match]:
    """Which items stand for each other: with the fewest leaves added, taken away and changed.

    Unlike the matching of equal items alone, this finds the place of an insertion also where every item
    around it changed. Time and memory are len(a) · len(b).
    """
    left, right = ([set(flatten(item)) for item in items] for items in (a, b))
    rest: dict[tuple[int, int], int] = {(len(a), len(b)): 0}  # cost of what comes from there on

    def steps(i: int, j: int) -> Iterator[tuple[int, Match, tuple[int, int]]]:
        if i < len(a) and j < len(b):
            yield rest[i + 1, j + 1] + len(left[i] ^ right[j]), (i, j), (i + 1, j + 1)
        if j < len(b):
            yield rest[i, j + 1] + max(1, len(right[j])), (None, j), (i, j + 1)
        if i < len(a):
            yield rest[i + 1, j] + max(1, len(left[i])), (i, None), (i + 1, j)

    cost = itemgetter(0)
    for i in range(len(a), -1, -1):
        for j in range(len(b), -1, -1):
            if (i, j) not in rest:
                rest[i, j] = min(map(cost, steps(i, j)))
    place, matches = (0, 0), []
    while place != (len(a), len(b)):
        _, match, place = min(steps(*place), key=cost)
        matches.append(match)
    return matches


def _joined(name: str, path: str) -> str:
    return f"{name}.{path}" if path else name
