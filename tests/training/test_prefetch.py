"""Batches from a thread: all of them, in order, with their errors, and no thread that stays."""

from __future__ import annotations

import threading
import time

import pytest

from nas.training.prefetch import Prefetched


def test_all_of_them_in_order():
    assert list(Prefetched(iter(range(50)))) == list(range(50))
    empty = Prefetched(iter(()))
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(empty)


def test_errors_reach_the_one_who_asks():
    def source():
        yield 1
        raise ValueError("no more")

    items = Prefetched(source())
    assert next(items) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="no more"):
            next(items)


def test_whoever_leaves_is_not_waited_for():
    def source():
        yield 1
        raise SystemExit(3)

    items = Prefetched(source())
    assert next(items) == 1
    with pytest.raises(SystemExit):
        next(items)


def test_it_is_ahead_by_no_more_than_it_may():
    made = []

    def source():
        for i in range(100):
            made.append(i)
            yield i

    items = Prefetched(source(), ahead=3)
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # three wait, one in hand
    items.close()


def test_close_ends_the_thread():
    before = threading.active_count()
    items = Prefetched(iter(range(10**9)))
    next(items)
    items.close()
    assert threading.active_count() == before
