"""Costs that add up over the parts of an architecture, for whole matrices of genes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nas.space.genes import Condition
from nas.space.space import Space
from nas.space.views import Context, Reader

Cost = Callable[[Any, Context], np.ndarray]


class Additive:
    """Sums `costs[cls](part, context)` over all parts of an architecture: (n, genes) -> (n, features).

    In the columns `maxima` the largest counts instead, as for the peak of memory in a chain of parts.

    Each cost is a plain function of one part and what is around it, and runs once per distinct set of
    the genes that it reads; the rest is table look-up. So a cost that builds a block and counts its
    operations serves 100,000 architectures in seconds.

    Example:
        >>> macs = Additive(space, {Block: lambda block, at: np.array([at.parent.width ** 2 * block.ratio])})
        >>> macs(genes).shape
        (100000, 1)
    """

    def __init__(self, space: Space, costs: Mapping[type, Cost], maxima: Sequence[int] = ()) -> None:
        self.space = space
        self.costs = dict(costs)
        self.maxima = tuple(maxima)
        self._known: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Additive, (self.space, self.costs, self.maxima)

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Costs of shape (n, features) for `genes` of shape (n, genes)."""
        genes = np.atleast_2d(np.asarray(genes, dtype=np.int64))
        parts = [self._site(i, cost, genes) for i, cost in self._sites()]
        width = max(part.shape[1] for part in parts)  # 0 where no row has the part
        parts = [part for part in parts if part.shape[1] == width]
        total: np.ndarray = np.sum(parts, axis=0)
        for column in self.maxima:
            total[:, column] = np.max([part[:, column] for part in parts], axis=0)
        return total

    def _sites(self) -> list[tuple[int, Cost]]:
        return [
            (i, cost)
            for i, site in enumerate(self.space.sites)
            for cls, cost in self.costs.items()
            if isinstance(site.template, cls)
        ]

    def _site(self, i: int, cost: Cost, genes: np.ndarray) -> np.ndarray:
        todo = np.flatnonzero(_holds(self.space.sites[i].condition, genes))
        known = self._known.setdefault(i, [])
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for reads, values, vector in known:
            same = (genes[np.ix_(todo, reads)] == values).all(axis=1)
            found.append((todo[same], vector))
            todo = todo[~same]
        while len(todo):
            reads, vector = self._run(i, cost, genes[todo[0]])
            values = genes[todo[0], reads]
            known.append((reads, values, vector))
            same = (genes[np.ix_(todo, reads)] == values).all(axis=1)
            found.append((todo[same], vector))
            todo = todo[~same]
        result = np.zeros((len(genes), len(known[0][2]) if known else 0))
        for rows, vector in found:
            result[rows] = vector
        return result

    def _run(self, i: int, cost: Cost, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        site = self.space.sites[i]
        reader = Reader(self.space._flat, genes.tolist(), len(genes))
        ancestors = tuple(reader.resolve(template, path) for path, template in site.ancestors)
        vector = cost(reader.resolve(site.template, site.path), Context(site.path, ancestors))
        return np.array(sorted(reader.reads), dtype=np.int64), np.asarray(vector, dtype=float)


def _holds(condition: Condition, genes: np.ndarray) -> np.ndarray:
    """Where a condition holds, bool of shape (n,)."""
    holds = np.ones(len(genes), dtype=bool)
    for gene, low, high in condition:
        holds &= (genes[:, gene] >= low) & (genes[:, gene] <= high)
    return holds
