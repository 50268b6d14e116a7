"""Timing, on a clock that the tests turn."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nas.devices.timing import round_robin, timing_lock
from nas.errors import DeviceError


class Clock:
    """A clock that only moves when a fake model runs; `speed` may change from round to round."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[int] = []

    def __call__(self) -> float:
        return self.now

    def model(self, index: int, seconds: Callable[[int], float]) -> Callable[[], None]:
        """A model whose i-th run takes `seconds(i)`."""
        runs = 0

        def run() -> None:
            nonlocal runs
            self.now += seconds(runs)
            self.calls.append(index)
            runs += 1

        return run


def constant(seconds: float) -> Callable[[int], float]:
    return lambda _: seconds


def test_constant_models_are_measured_exactly() -> None:
    clock = Clock()
    seconds = [1e-4, 2e-4, 8e-4]
    timing = round_robin([clock.model(i, constant(s)) for i, s in enumerate(seconds)], rounds=5, clock=clock)
    np.testing.assert_allclose(timing.ms, [0.1, 0.2, 0.8], rtol=1e-6)
    np.testing.assert_allclose(timing.spread_ms, 0, atol=1e-9)
    np.testing.assert_allclose(np.prod(timing.relative), 1)


def test_a_machine_that_slows_down_cancels() -> None:
    clock = Clock()
    slower = [lambda run, s=s: s * (1 + run // 3) for s in (1e-4, 3e-4)]
    timing = round_robin([clock.model(i, s) for i, s in enumerate(slower)], rounds=9, warmup=0, clock=clock)
    np.testing.assert_allclose(timing.relative[1] / timing.relative[0], 3)
    np.testing.assert_allclose(timing.relative_spread, 0, atol=1e-9)


def test_interrupted_runs_neither_count_nor_shift_the_others() -> None:
    """In every round one of eight models is interrupted, each in its turn."""
    clock = Clock()
    ms = np.geomspace(0.1, 2, 8)
    slow = [lambda run, i=i: ms[i] * (1e-1 if run % 8 == i else 1e-3) for i in range(8)]
    runs = [clock.model(i, seconds) for i, seconds in enumerate(slow)]
    timing = round_robin(runs, rounds=40, warmup=0, primes=0, clock=clock)
    np.testing.assert_allclose(timing.ms, ms, rtol=1e-6)
    np.testing.assert_allclose(np.prod(timing.relative), 1)


def test_spread_is_half_the_interquartile_range() -> None:
    clock = Clock()
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.8, 1.2, 4000)
    still = [clock.model(i, constant(1e-3)) for i in range(40)]
    timing = round_robin(
        [*still, clock.model(40, lambda run: 1e-3 * noise[run])],
        rounds=2000,
        primes=0,
        clock=clock,
    )
    assert timing.spread_ms[-1] == pytest.approx(0.1, rel=0.1)  # of ±20 %, half lies within ±10 %


def test_each_timed_run_follows_runs_of_the_same_model() -> None:
    clock = Clock()
    cold = [clock.model(i, lambda run: 1e-4 if run % 3 == 2 else 1.0) for i in range(4)]
    timing = round_robin(cold, rounds=7, warmup=0, primes=2, clock=clock)
    np.testing.assert_allclose(timing.ms, 0.1, rtol=1e-6)
    blocks = np.reshape(clock.calls, (-1, 3))
    assert (blocks == blocks[:, :1]).all()


def test_warmup_rounds_do_not_count() -> None:
    clock = Clock()
    timing = round_robin(
        [clock.model(0, lambda run: 1.0 if run < 3 else 1e-3)],
        rounds=2,
        warmup=3,
        primes=0,
        clock=clock,
    )
    assert timing.ms[0] == pytest.approx(1.0)


def test_order_is_random_and_follows_the_seed() -> None:
    def order(seed: int) -> list[int]:
        clock = Clock()
        runs = [clock.model(i, constant(1e-3)) for i in range(8)]
        round_robin(runs, rounds=4, warmup=0, primes=0, seed=seed, clock=clock)
        return clock.calls

    first = np.reshape(order(0), (4, 8))
    assert order(0) == order(0) != order(1)
    assert len({tuple(row) for row in first}) > 1
    assert (np.sort(first, axis=1) == np.arange(8)).all()  # every model once in every round


def test_no_garbage_is_collected_while_the_clock_runs() -> None:
    seen: list[bool] = []
    clock = Clock()
    tick = clock.model(0, constant(1e-3))

    def run() -> None:
        seen.append(gc.isenabled())
        tick()

    assert gc.isenabled()
    round_robin([run], rounds=2, clock=clock)
    assert gc.isenabled()
    assert not any(seen)


def test_what_cannot_be_timed_is_refused() -> None:
    with pytest.raises(DeviceError, match="at least one model"):
        round_robin([])
    with pytest.raises(DeviceError, match="one tick"):
        round_robin([lambda: None], clock=lambda: 0.0)


def test_a_second_timing_waits_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lock"
    events: list[str] = []

    def second() -> None:
        with timing_lock(path):
            events.append("second")

    waiter = threading.Thread(target=second)
    with caplog.at_level(logging.WARNING), timing_lock(path):
        waiter.start()
        while not caplog.records:  # it has met the lock
            waiter.join(0.01)
        events.append("first")
    waiter.join(10)
    assert events == ["first", "second"]
    assert "waiting" in caplog.text


def test_the_lock_is_freed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), timing_lock(tmp_path / "lock"):
        raise ZeroDivisionError
    descriptor = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
