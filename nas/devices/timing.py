"""Timing many small models against one another."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nas.errors import DeviceError

Floats = npt.NDArray[np.float64]
LOCK = Path("/tmp/nas-timing.lock")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Timing:
    """Latencies of n models that were timed together.

    Attributes:
        relative: (n,) latency in units of the geometric mean of all n.
        relative_spread: (n,) half the interquartile range, in the same unit: half of all runs lie
            that near. The error of the median is smaller; how far a second measurement strays is
            the test-retest error of a profile.
        anchor_ms: the geometric mean; it drifts with the machine, `relative` does not.
    """

    relative: Floats
    relative_spread: Floats
    anchor_ms: float

    @property
    def ms(self) -> Floats:
        """(n,) latencies in milliseconds."""
        return self.relative * self.anchor_ms

    @property
    def spread_ms(self) -> Floats:
        """(n,) half the interquartile ranges in milliseconds."""
        return self.relative_spread * self.anchor_ms


def round_robin(
    runs: Sequence[Callable[[], object]],
    *,
    rounds: int = 200,
    warmup: int = 5,
    primes: int = 2,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time all `runs` in rounds, each in a new random order.

    A round is divided by its geometric mean, so that a slow second of the machine slows all models
    of that round alike and cancels; the median over the rounds drops what hit a single run. For 30
    models of 0.1 to 2 ms two such measurements an hour apart differed by 1.8 %, medians taken one
    model after another by 24 %.

    Untimed runs before each timed one bring the model back into the caches. Without them a model of
    0.1 ms took 3.2 times as long amid 40 others as alone and 1.4 times as long amid 10, so that its
    latency told of its company; with two it is within 3 % of its latency alone in both.

    Args:
        runs: one inference each, see `nas.devices.runtimes`.
        rounds: timed runs of each model.
        warmup: rounds that are not counted.
        primes: untimed runs of a model before each timed one.
        seed: of the order.
        clock: seconds, monotonic.

    Raises:
        DeviceError: nothing to time, or a run too short for the clock.
    """
    if not runs or rounds < 1:
        raise DeviceError(f"Timing needs at least one model and one round, got {len(runs)} and {rounds}.")
    rng = np.random.default_rng(seed)
    seconds = np.empty((warmup + rounds, len(runs)))
    with _no_collection():
        for row in seconds:
            for i in rng.permutation(len(runs)):
                for _ in range(primes):
                    runs[i]()
                start = clock()
                runs[i]()
                row[i] = clock() - start
    return _summarise(seconds[warmup:])


def _summarise(seconds: Floats) -> Timing:
    """Timing of `seconds` (rounds, models)."""
    if not (seconds > 0).all():
        raise DeviceError(
            "Every run must take longer than one tick of the clock, but some took 0 s. Time larger batches."
        )
    anchors = np.exp(np.log(seconds).mean(axis=1))  # (rounds,) geometric means
    low, median, high = np.quantile(seconds / anchors[:, None], (0.25, 0.5, 0.75), axis=0)
    # One interrupted run lifts the anchor of its round, so the medians lie a little below: undo that.
    scale = float(np.exp(np.log(median).mean()))
    return Timing(median / scale, (high - low) / 2 / scale, float(np.median(anchors)) * scale * 1e3)


@contextmanager
def timing_lock(path: Path | None = None) -> Iterator[None]:
    """Hold the one lock of this host under which models are timed; wait for it if need be.

    The lock goes with the process that holds it, however that ends.

    Args:
        path: the lock file; by default `LOCK`, whatever TMPDIR says, since one host has one clock.
    """
    path = path or LOCK
    if not path.exists():
        path.touch(exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY)  # read-only: the file may be another user's
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("Another timing is under way on this host (%s); waiting for it.", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage now and not while the clock runs."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
