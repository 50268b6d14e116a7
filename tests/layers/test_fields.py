"""What cannot be built is refused when it is made; what is not refused works, at every value of a gene."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from layers.test_contract import CHOICES, SIDE, WIDTH, build, inputs, largest, run

from nas.errors import SpaceError
from nas.layers import (
    Bits,
    Block,
    Checked,
    ConditionalPosition,
    Downsample,
    Global,
    LayerNorm,
    Mlp,
    OverlapStem,
    Stem,
    Window,
    gene,
    setting,
)
from nas.layers.downsampling.cross_scale import CrossScaleDownsample
from nas.layers.mixers.state_space import StateSpace
from nas.layers.stems.convolution import ConvStem
from nas.space import between, oneof, repeat, tied
from search_spaces.hierarchical import Head, Stage


@dataclass(frozen=True)
class Sizes(Checked):
    """One of each kind."""

    count: int = 1
    side: int = gene(1, 3, default=1, odd=True)
    share: float = 0.5
    scale: float | None = setting(None, least=0)
    maybe: int | None = setting(None, least=0)
    on: bool = False
    kind: str = setting("a", among=("a", "b"))
    items: tuple[int, ...] = (1,)
    norm: LayerNorm | None = None
    anything: object = None


REFUSED = {
    "count": ([0, -1, 1.5, 2.0, True, "4", None, float("nan")], "a whole number of at least 1"),
    "side": ([0, 2, -1, 3.0], "an odd number, such as 3 or 5"),
    "share": ([0, -0.5, float("nan"), float("inf"), True, "1"], "a number above 0"),
    "scale": ([-1e-9, float("nan"), "0"], "a number of at least 0 or None"),
    "maybe": ([-1, 0.0], "a whole number of at least 0 or None"),
    "on": ([0, 1, None, "yes"], "True or False"),
    "kind": (["c", None, 1], "one of a, b"),
    "items": ([1, [1], (1, 0), ("1",)], "a tuple, each item a whole number of at least 1"),
    "norm": ([LayerNorm, "layer", 1], "a LayerNorm or None"),
}
TAKEN = {
    "count": [1, 7],
    "side": [1, 3, 99],
    "share": [1, 1e-9, 3.0],
    "scale": [None, 0, 0.0, 2],
    "maybe": [None, 0, 3],
    "on": [True, False],
    "kind": ["a", "b"],
    "items": [(), (1, 2)],
    "norm": [None, LayerNorm()],
    "anything": [None, "x", oneof(1, "x")],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_is_none_is_refused(name):
    values, must = REFUSED[name]
    for value in values:
        with pytest.raises(SpaceError) as raised:
            Sizes(**{name: value})
        assert str(raised.value) == f"`{name}` of Sizes must be {must}: got {value!r}."


def test_numbers_of_numpy_are_refused_with_a_word():
    with pytest.raises(
        SpaceError, match=r"at least 1: got np\.int64\(2\)\. Make it a number of Python's own"
    ):
        Sizes(count=np.int64(2))


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_one_is_taken(name):
    for value in TAKEN[name]:
        assert getattr(Sizes(**{name: value}), name) == value


@pytest.mark.parametrize(
    "hole",
    [
        oneof(1, 0),
        oneof(1, oneof(2, 0)),
        tied("t", oneof(0, 1)),
        between(1, 4),  # numbers between are no whole ones
        repeat(1, 1, 2),
    ],
)
def test_a_hole_is_refused_for_what_it_may_become(hole):
    with pytest.raises(SpaceError, match="`count` of Sizes must be a whole number"):
        Sizes(count=hole)


def test_a_hole_is_taken_where_all_of_it_is():
    Sizes(
        count=oneof(1, tied("t", oneof(2, 3))),
        share=between(0.1, 2),
        norm=oneof(None, LayerNorm(between(1e-6, 1e-5))),
        items=oneof((1, 2), (oneof(1, 2), 3)),
    )
    with pytest.raises(SpaceError, match="`items` of Sizes must be a tuple, each item"):
        Sizes(items=(oneof(1, 0), 3))
    with pytest.raises(SpaceError, match="`blocks` of Stage must be a tuple, each item a Block: got"):
        Stage(8, repeat(Mlp(1), 0, 2))


def test_a_class_that_names_what_nobody_knows_is_not_checked_there():
    class Local:
        pass

    @dataclass(frozen=True)
    class Odd(Checked):
        local: Local
        count: int = 1

    Odd("anything")
    with pytest.raises(SpaceError, match="`count` of Odd"):
        Odd(Local(), count=0)


def test_a_field_is_what_the_last_class_says():
    @dataclass(frozen=True)
    class Fewer(Sizes):
        count: None = None

    Fewer()
    with pytest.raises(SpaceError, match="`count` of Fewer must be None: got 1"):
        Fewer(count=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Window(0, 2),
        lambda: Window(2, oneof(2, -2)),
        lambda: Window(2, 2, shift=1),
        lambda: Global(2, head_dim=0),
        lambda: Global(2, value_dim=0),
        lambda: Global(1.5),
        lambda: Global(2, qk_norm="layer"),
        lambda: Bits(3),
        lambda: Bits(oneof(0, 8)),
        lambda: Mlp(0),
        lambda: Mlp(1, activation="tanh"),
        lambda: Block("window", Mlp(1)),
        lambda: Block(Global, Mlp(1)),
        lambda: Block(Global(1), Mlp(1), layer_scale=-1),
        lambda: ConditionalPosition(oneof(3, 4)),
        lambda: OverlapStem(0),
        lambda: OverlapStem(2, padding=-1),
        lambda: ConvStem(0),
        lambda: CrossScaleDownsample((2, 0)),
        lambda: StateSpace(4, rank=0),
        lambda: Stage(0, ()),
        lambda: Stage(8, (), token=True),
        lambda: Head(pool="max"),
        lambda: Head(classifiers=0),
    ],
)
def test_choices_are_checked(make):
    with pytest.raises(SpaceError, match=r"^`\w+` of \w+ must be "):
        make()


NUMBERS = [
    (choice, f.name, values)
    for choice in CHOICES
    for f in dataclasses.fields(choice)
    for kind, values in (("int", range(1, 9)), ("float", (1e-3, 0.3, 1, 2.5)))
    if str(f.type).removesuffix(" | None") == kind
]


@pytest.mark.parametrize(
    ("choice", "name", "values"), NUMBERS, ids=[f"{c.__name__}-{n}" for c, n, _ in NUMBERS]
)
def test_what_is_not_refused_works(choice, name, values):
    """At any value that neither the class nor the map refuses, a layer gives a map of the promised shape."""
    tried = 0
    for value in values:
        try:
            part = largest(choice, **{name: value})
            if getattr(part, "misfit", lambda *_: None)(SIDE, SIDE):
                continue
            module = build(part).double()
        except SpaceError:  # the message is the test of others
            continue
        y = run(module, inputs(part))
        side, width = SIDE, WIDTH
        if isinstance(part, (Stem, Downsample)):
            side, width = part.after(SIDE), WIDTH * (1 + isinstance(part, Downsample))
        assert y.shape[1:] == (side, side, width), value
        assert torch.isfinite(y).all(), value
        assert sum(p.numel() == 0 for p in module.parameters()) == 0, value
        tried += 1
    assert tried
