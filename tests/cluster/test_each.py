"""A function of many items: all of them, wherever they run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nas.cluster import each
from nas.cluster.local import connect
from nas.errors import RunError

HERE = [sys.modules[__name__]]


def plus(shared, item):
    return shared + item


def dies_once(folder, item):
    if item == 2:
        marker = Path(folder) / "died"
        if not marker.exists():
            marker.touch()
            os._exit(1)
    return item * 10


def fails(shared, item):
    raise RunError(f"Item {item} must not be.")


def test_here():
    assert list(each(plus, 1, [1, 2, 3], workers=0)) == [(1, 2), (2, 3), (3, 4)]
    with pytest.raises(RunError, match="Item 1 must not be"):
        list(each(fails, None, [1, 2], workers=0))


@pytest.fixture
def ray():
    stop = connect(2, None)
    yield
    stop()


def test_on_ray(ray, tmp_path):
    """Each item once, also where a process dies; errors as they are."""
    found = dict(each(dies_once, str(tmp_path), [1, 2, 3], workers=2, by_value=HERE))
    assert found == {1: 10, 2: 20, 3: 30}
    assert (tmp_path / "died").exists()
    with pytest.raises(RunError, match=r"Item \d must not be"):
        list(each(fails, None, [1, 2], workers=2, by_value=HERE))
