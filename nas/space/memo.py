"""Memory for functions that read only a few of the genes they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
Known = tuple[T, frozenset[int]]


class Memo(Generic[T]):
    """Remembers results by (position, the genes that were read).

    Sound for deterministic functions: a run that reads the same values takes the same course, so two
    assignments that agree on what one run has read have the same result.
    """

    def __init__(self) -> None:
        self._known: dict[int, dict[tuple[int, ...], dict[tuple[int, ...], Known[T]]]] = {}

    def get(self, position: int, genes: Sequence[int], compute: Callable[[], Known[T]]) -> Known[T]:
        """The result at `position` and the genes it depends on; `compute` gives both when unknown."""
        tables = self._known.setdefault(position, {})
        for reads, table in tables.items():
            if (hit := table.get(tuple([genes[g] for g in reads]))) is not None:
                return hit
        result = compute()
        reads = tuple(sorted(result[1]))
        tables.setdefault(reads, {})[tuple([genes[g] for g in reads])] = result
        return result
