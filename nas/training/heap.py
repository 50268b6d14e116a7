"""Keeping the garbage collector off the modules that every step makes anew."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

SWEEP = 60.0  # seconds after which what is hidden is looked at once

_frozen = 0  # how many bodies of `frozen_heap` are open
_swept = 0.0  # when all was looked at


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Hides what exists now from the garbage collector for the length of the body.

    A skeleton is thousands of small objects, which trigger collections that walk all of torch: half of the
    time of a build, on average, went into them.
    """
    global _frozen
    _freeze_all()
    _frozen += 1
    try:
        yield
    finally:
        _frozen -= 1
        if not _frozen:
            gc.unfreeze()


@contextmanager
def hidden() -> Iterator[None]:
    """Within `frozen_heap`: hides what the body makes as well; elsewhere it does nothing.

    Most modules are no cycles and need no collector, which would walk each new one at least twice. Garbage
    of before the body is collected first; cycles that become garbage later wait for `SWEEP` or `sweep`.
    """
    if not _frozen or not gc.isenabled():
        yield
        return
    if time.monotonic() - _swept > SWEEP:
        sweep()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def sweep() -> None:
    """Looks once at all that is hidden."""
    if _frozen:
        gc.unfreeze()
        _freeze_all()


def _freeze_all() -> None:
    global _swept
    gc.collect()
    gc.freeze()
    _swept = time.monotonic()
