"""Batches made ready while the steps before them run."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

from nas.errors import NasError, RunError

T = TypeVar("T")
_spent_elsewhere = 0.0
CAN_FORK = sys.platform == "linux"  # elsewhere a process would need a copy of all data


def core_seconds() -> float:
    """Processor time of this process, and of those that made batches for it, up to the last batch."""
    return time.process_time() + _spent_elsewhere


class Prefetched(Iterator[T]):
    """What `source` gives, in its order, from a thread that is up to `ahead` items ahead."""

    def __init__(self, source: Iterator[T], ahead: int = 2) -> None:
        self._items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        item, problem = self._items.get()
        if problem is not None:
            self._items.put((None, problem))  # for whoever asks again
            raise problem
        assert item is not None
        return item

    def close(self) -> None:
        """Ends the thread; it is idle when this returns."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._items.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _run(self, source: Iterator[T]) -> None:
        try:
            for item in source:
                if self._stop.is_set():
                    return
                self._items.put((item, None))
            self._items.put((None, StopIteration()))
        except BaseException as error:  # belongs to the one who asks
            self._items.put((None, error))


class OtherProcess(Generic[T]):
    """Items of epoch after epoch, made by another process, for what draws from random numbers that a step in
    this one draws from.

    Args:
        make: the items of an epoch from a number on; raises NasError alone.

    Attributes:
        epoch: whose items come next; None in the middle of one.
    """

    def __init__(
        self, make: Callable[[int, int], Iterator[T]], epoch: int, first: int, ahead: int = 4
    ) -> None:
        self.epoch: int | None = epoch
        self._spent = 0.0  # core-seconds of the process
        self._items: Iterator[Any] | None = iter(
            DataLoader(
                _Epochs(make, epoch, first),
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=1,
                prefetch_factor=ahead,
                multiprocessing_context="fork",
                generator=torch.Generator(),  # what it draws a seed from, which nobody uses
            )
        )

    def items(self) -> Iterator[T]:
        """Those of the next epoch."""
        assert self._items is not None
        epoch, self.epoch = self.epoch, None
        for item, spent in self._items:
            self._note(spent)
            if isinstance(item, str):
                raise RunError(item)
            if item is None:
                break
            yield item
        self.epoch = None if epoch is None else epoch + 1

    def _note(self, spent: float) -> None:
        global _spent_elsewhere
        _spent_elsewhere += spent - self._spent
        self._spent = spent

    def close(self) -> None:
        """Ends the process."""
        self._items = None


def _as_it_is(item: T) -> T:
    return item


class _Epochs(IterableDataset[Any]):
    """Items, None after each epoch, and the message of an error; each with the core-seconds so far."""

    def __init__(self, make: Callable[[int, int], Iterator[Any]], epoch: int, first: int) -> None:
        self.make, self.epoch, self.first = make, epoch, first

    def __iter__(self) -> Iterator[Any]:
        try:
            for epoch in count(self.epoch):
                for item in self.make(epoch, self.first if epoch == self.epoch else 0):
                    yield item, time.process_time()
                yield None, time.process_time()
        except NasError as error:
            yield str(error), time.process_time()
