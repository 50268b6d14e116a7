"""Settings as values."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nas.errors import RunError
from nas.settings import describe, differences, parse_assignments, replaced


@dataclass(frozen=True)
class Inner:
    epochs: int = 3
    rate: float = 0.1
    on: bool = True
    sizes: tuple[int, ...] = (1, 2)


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
        ("inner.on", "False", False),
        ("inner.on", "true", True),
        ("inner.sizes", "[3, 4]", (3, 4)),
        ("name", "12", "12"),
        ("uri", "http://host", "http://host"),
        ("maker", "collections.OrderedDict", __import__("collections").OrderedDict),
    ],
)
def test_texts_become_values_of_the_kind_that_is_there(path, text, wanted):
    value = replaced(Outer(), path, text)
    for part in path.split("."):
        value = getattr(value, part)
    assert value == wanted
    assert type(value) is type(wanted)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("inner.epoch", "3", "Inner has no `epoch`. It has epochs, on, rate, sizes"),
        ("inner.epochs", "3.5", "type int .now 3.: got '3.5'"),
        ("inner.on", "1", "type bool"),
        ("name.x", "3", "has none inside"),
        ("maker", "nowhere.Thing", "something to import"),
    ],
)
def test_what_does_not_fit_is_named(path, text, message):
    with pytest.raises(RunError, match=message):
        replaced(Outer(), path, text)


def test_assignments():
    assert parse_assignments(["a.b=1=2", " c = d "]) == {"a.b": "1=2", "c": "d"}
    with pytest.raises(RunError, match="NAME=VALUE"):
        parse_assignments(["a.b"])


def test_differences_name_the_leaves():
    changed = replaced(replaced(Outer(), "inner.epochs", "7"), "name", "y")
    found = set(differences(describe(Outer()), describe(changed)))
    assert found == {"inner.epochs was 3, is 7", "name was 'x', is 'y'"}
    assert not list(differences(describe(Outer()), describe(Outer())))
