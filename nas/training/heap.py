"""Keeping the garbage collector off the modules that every step makes anew."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Hides what exists now from the garbage collector for the length of the body.

    A skeleton is thousands of small objects, which trigger collections that walk all of torch: half of the
    time of a build, on average, went into them.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
