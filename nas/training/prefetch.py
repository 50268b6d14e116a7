"""Batches made ready while the step before them runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


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
