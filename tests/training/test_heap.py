"""What the garbage collector is kept off, and what it still finds."""

from __future__ import annotations

import gc
import weakref

import pytest

from nas.training import frozen_heap, heap


class Thing:
    """Refers to itself, so that only the collector can remove it."""

    def __init__(self) -> None:
        self.own = self


def watched(thing: Thing) -> bool:
    return any(other is thing for other in gc.get_objects())


def test_what_is_there_is_hidden_until_the_heap_thaws():
    thing = Thing()
    with frozen_heap():
        assert not watched(thing)
        assert watched(Thing())
    assert watched(thing)
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(
    ("before", "within"),
    [
        ((700, 10, 10), (heap.OBJECTS, 2, 2)),
        ((10**6, 10, 10), (10**6, 2, 2)),
        ((0, 10, 10), (0, 10, 10)),
    ],
)
def test_the_collector_looks_less_often_within(before, within):
    kept = gc.get_threshold()
    gc.set_threshold(*before)
    try:
        with frozen_heap():
            with frozen_heap():
                assert gc.get_threshold() == within
            assert gc.get_threshold() == within
            assert gc.get_freeze_count()
        assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*kept)


def test_cycles_do_not_pile_up():
    alive: weakref.WeakSet[Thing] = weakref.WeakSet()
    with frozen_heap():
        for _ in range(4 * heap.OBJECTS):
            alive.add(Thing())
        assert len(alive) < 2 * heap.OBJECTS
