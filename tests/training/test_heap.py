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


def test_what_is_made_in_the_body_is_hidden_until_the_heap_thaws():
    with frozen_heap():
        with heap.hidden():
            thing = Thing()
        assert not watched(thing)
        later = Thing()
        assert watched(later)
        assert gc.isenabled()
    assert watched(thing)
    assert gc.get_freeze_count() == 0


def test_an_inner_heap_leaves_the_outer_one_frozen():
    with frozen_heap():
        with heap.hidden():
            thing = Thing()
        with frozen_heap():
            pass
        assert not watched(thing)
    assert watched(thing)


def test_garbage_is_collected_before_the_body():
    with frozen_heap():
        gone = weakref.ref(Thing())
        with heap.hidden():
            assert gone() is None


def test_hidden_garbage_is_found_in_the_end(monkeypatch):
    with frozen_heap():
        with heap.hidden():
            thing = Thing()
        gone = weakref.ref(thing)
        del thing
        with heap.hidden():
            assert gone() is not None
        monkeypatch.setattr(heap, "SWEEP", -1.0)
        with heap.hidden():
            assert gone() is None


@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_left_to_whoever_has_other_plans(frozen):
    """No frozen heap, or a collector that is off."""
    if not frozen:
        with heap.hidden():
            thing = Thing()
        assert watched(thing)
        return
    gc.disable()
    try:
        with frozen_heap(), heap.hidden():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
