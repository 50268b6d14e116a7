"""Settings as values."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from torch import nn

from nas.annotations import require_types
from nas.errors import RunError
from nas.settings import describe, differences, parse_assignments, replaced


@dataclass(frozen=True)
class Inner:
    epochs: int = 3
    rate: float = 0.1
    on: bool = True
    sizes: tuple[int, ...] = (1, 2)
    left_out: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    fast: bool = False

    def __post_init__(self):
        require_types(self, "inner.")
        if self.fast and self.epochs > 5:
            raise RunError("no epochs left")


@dataclass(frozen=True)
class Other:
    width: int = 3


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)
    maker: type = dict
    uri: str | None = None


@pytest.mark.parametrize(
    ("path", "text", "wanted"),
    [
        ("inner.epochs", "7", 7),
        ("inner.rate", "2", 2.0),
        ("inner.rate", "1e-3", 1e-3),
        ("inner.rate", "inf", math.inf),
        ("inner.on", "False", False),
        ("inner.on", "true", True),
        ("inner.sizes", "[3, 4]", (3, 4)),
        ("inner.left_out", '[["ratio", [1.5]]]', (("ratio", (1.5,)),)),
        ("name", "12", "12"),
        ("uri", "http://host", "http://host"),
        ("maker", "collections.OrderedDict", __import__("collections").OrderedDict),
    ],
)
def test_texts_become_values_of_the_kind_that_is_there(path, text, wanted):
    value = replaced(Outer(), {path: text})
    for part in path.split("."):
        value = getattr(value, part)
    assert value == wanted
    assert type(value) is type(wanted)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("inner.epoch", "3", "set inner.epoch` .* Inner has no `epoch`. It has epochs, fast, left_out, on"),
        ("inner.epochs", "3.5", "type int .now 3.: got '3.5'"),
        ("inner.on", "1", "type bool"),
        ("inner.rate", "fast", "type float"),
        ("name.x", "3", "has none inside"),
        ("maker", "nowhere.Thing", "something to import, such as builtins.dict: got"),
        ("inner", "Sandwich", r"something to import, such as .*test_settings\.Inner: got 'Sandwich'"),
    ],
)
def test_what_does_not_fit_is_named(path, text, message):
    with pytest.raises(RunError, match=message):
        replaced(Outer(), {path: text})


def test_all_are_set_at_once():
    """Since a value may fit only beside another; a class that is set first has settings too."""
    slow = Outer(inner=Inner(epochs=7))
    assert replaced(slow, {"inner.fast": "true", "inner.epochs": "2"}).inner == Inner(epochs=2, fast=True)
    texts = {"inner.width": "5", "inner": f"{__name__}.Other"}
    assert replaced(slow, texts).inner == Other(width=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 3.0}, "`inner.epochs` must be a whole number: got 3.0"),
        ({"epochs": True}, "must be a whole number: got True"),
        ({"rate": "1e-3"}, "`inner.rate` must be a number: got '1e-3'"),
        ({"rate": float("nan")}, "must be a number: got nan"),
        ({"rate": np.float32(0.1)}, "Make it a number of Python's own"),
        ({"on": 1}, "must be True or False: got 1"),
        ({"sizes": 3}, "`inner.sizes` must be a tuple, each item a whole number: got 3"),
        ({"sizes": (3, 0.5)}, "each item a whole number"),
        ({"left_out": (("ratio",),)}, r"each item a tuple \(a text, a tuple, each item anything\): got"),
    ],
    ids=str,
)
def test_fields_are_held_against_their_annotations(settings, message):
    with pytest.raises(RunError, match=message):
        Inner(**settings)


def test_modules_of_other_weights_are_other_settings():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert describe(one).startswith("torch.nn.modules.linear.Linear of weights ")
    assert describe(one) == describe(copy.deepcopy(one)) != describe(other)
    assert describe(nn.Linear) == "torch.nn.modules.linear.Linear"


def test_assignments():
    assert parse_assignments(["a.b=1=2", " c = d "]) == {"a.b": "1=2", "c": "d"}
    with pytest.raises(RunError, match="NAME=VALUE"):
        parse_assignments(["a.b"])


def test_differences_name_the_leaves():
    changed = replaced(Outer(), {"inner.epochs": "7", "name": "y"})
    found = set(differences(describe(Outer()), describe(changed)))
    assert found == {"inner.epochs was 3, is 7", "name was 'x', is 'y'"}
    assert not list(differences(describe(Outer()), describe(Outer())))
