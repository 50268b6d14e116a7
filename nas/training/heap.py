"""Keeping the garbage collector off the modules that every step makes anew."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS = 50_000
"""New objects, less those that are gone, at which the collector looks: some twenty skeletons."""

_open = 0  # bodies
_before = gc.get_threshold()  # of the first of them


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Hides what exists now from the garbage collector for the length of the body, and has it look at what is
    new less often.

    A skeleton is thousands of small objects, few of them in cycles. The collector would look at all torch
    while it is built, and at each skeleton several times: a fifth of the time of a step went into that.
    """
    global _open, _before
    if not _open:
        gc.collect()
        gc.freeze()
        _before = gc.get_threshold()
        if _before[0]:  # 0: never
            gc.set_threshold(max(OBJECTS, _before[0]), 2, 2)
    _open += 1
    try:
        yield
    finally:
        _open -= 1
        if not _open:
            gc.set_threshold(*_before)
            gc.unfreeze()
