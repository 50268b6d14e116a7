"""Spaces with fewer options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from nas.errors import SpaceError
from nas.space import Constraint, Space, between, oneof, repeat, tied


@dataclass(frozen=True)
class Part:
    ratio: Any = oneof(1, 2, 4)
    scale: Any = between(0, 1)


@dataclass(frozen=True)
class Plain:
    size: Any = oneof(1, 3)


@dataclass(frozen=True)
class Whole:
    width: Any = tied("body.width", oneof(8, 16, 32))
    first: Any = Part(ratio=3)
    parts: Any = repeat(oneof(Part(), Plain()), 1, 3)
    pair: Any = (oneof(1, 2), oneof(2, 3))


@pytest.fixture(scope="module")
def space() -> Space:
    return Space(Whole())


def all_ratios(architecture: Whole) -> set[int]:
    return {part.ratio for part in architecture.parts if isinstance(part, Part)}


def test_what_is_left_out_is_never_drawn_and_all_else_is(space):
    fewer = space.without("ratio", [2])
    rng = np.random.default_rng(0)
    drawn = [fewer.sample(rng) for _ in range(200)]
    assert set().union(*map(all_ratios, drawn)) == {1, 4}
    assert all(architecture in space for architecture in drawn)
    for architecture in (space.sample(rng) for _ in range(200)):
        assert (architecture in fewer) == (2 not in all_ratios(architecture))


def test_sizes_say_how_many_are_left(space):
    def count(ratios: int, widths: int) -> int:
        part = ratios + 2
        return widths * (part + part**2 + part**3) * 4

    assert space.size == count(3, 3)
    assert space.without("ratio", [2]).size == count(2, 3)
    assert space.without("ratio", [2]).without("width", [8, 32]).size == count(2, 1)


def test_choices_in_a_tuple_go_by_its_name(space):
    fewer = space.without("pair", [2])
    assert fewer.size * 4 == space.size
    assert fewer.largest().pair == (1, 3)


def test_laws_stay():
    law = Constraint(Plain, lambda plain, _: "must not be 3" if plain.size == 3 else None)
    space = Space(Whole(), [law])
    assert space.without("ratio", [1]).size < space.without("ratio", [7 - 3]).size * 2
    rng = np.random.default_rng(0)
    drawn = [space.without("ratio", [1]).sample(rng) for _ in range(50)]
    assert not any(part == Plain(3) for a in drawn for part in a.parts)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ratio", [3], "option of a `oneof` called `ratio`: got 3; there are 1, 2, 4"),
        ("rato", [2], "option of a `oneof` called `rato`: got 2; there is no such choice"),
        ("scale", [0], "there is no such choice"),
        ("width", [8, 16, 32], "`width` must keep an option, but 8, 16, 32 all go"),
    ],
)
def test_what_cannot_be_left_out(space, name, options, message):
    with pytest.raises(SpaceError, match=message):
        space.without(name, options)
