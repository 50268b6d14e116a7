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
        self._known: dict[int, dict[tuple[int, ...], dict[bytes, np.ndarray]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Additive, (self.space, self.costs, self.maxima)

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Costs of shape (n, features) for `genes` of shape (n, genes).

        Raises:
            SpaceError: other columns than the space has genes, or numbers that none of them has.
        """
        genes = self.space.valid_genes(genes)
        if not len(genes):
            return self(self.space.encode(self.space.smallest()))[:0]
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
        """Costs of one part, (n, features), zero where a row does not have it."""
        todo = np.flatnonzero(_holds(self.space.sites[i].condition, genes))
        result = np.zeros((len(genes), 0))
        while len(todo):
            todo, result = self._look_up(i, genes, todo, result)
            if len(todo):
                self._run_each_kind(i, cost, genes[todo])
        return result

    def _look_up(
        self, i: int, genes: np.ndarray, todo: np.ndarray, result: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fills in what is known of the rows `todo`; returns those that are left, and the result."""
        for reads, table in self._known.get(i, {}).items():
            codes, which = np.unique(self._codes(genes[todo], reads), return_inverse=True)
            vectors = [table.get(code) for code in codes.tolist()]
            known = np.array([v is not None for v in vectors])[which]
            if known.any():
                width = len(next(v for v in vectors if v is not None))
                rows = np.array([np.zeros(width) if v is None else v for v in vectors])
                result = result if result.shape[1] else np.zeros((len(genes), width))
                result[todo[known]] = rows[which[known]]
                todo = todo[~known]
        return todo, result

    def _run_each_kind(self, i: int, cost: Cost, genes: np.ndarray) -> None:
        """Runs the rule on the first row, and on one of each kind that the genes it read there tell apart.
        Another row may read other genes: the next look-up shows which rows are still unknown."""
        tables = self._known.setdefault(i, {})
        reads = self._learn(i, cost, genes[0])
        _, first = np.unique(self._codes(genes, reads), return_index=True)
        for row in genes[first]:
            if not any(self._codes(row[None], r).item() in table for r, table in tables.items()):
                self._learn(i, cost, row)

    def _learn(self, i: int, cost: Cost, genes: np.ndarray) -> tuple[int, ...]:
        """Runs the rule on one row, keeps what it said, and returns the genes that it read."""
        reads, vector = self._run(i, cost, genes)
        table = self._known.setdefault(i, {}).setdefault(reads, {})
        table[self._codes(genes[None], reads).item()] = vector
        return reads

    def _codes(self, genes: np.ndarray, reads: tuple[int, ...]) -> np.ndarray:
        """One number per row that tells apart what stands in the columns `reads`, (n,)."""
        strides = [1]
        for read in reads:
            strides.append(strides[-1] * self.space.genes[read].cardinality)
        kind = np.int64 if strides[-1] < 2**62 else object
        return genes[:, reads].astype(kind) @ np.array(strides[:-1], dtype=kind)

    def _run(self, i: int, cost: Cost, genes: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
        """Genes that the rule read, and what it said."""
        site = self.space.sites[i]
        reader = Reader(self.space._flat, genes.tolist(), len(genes))
        ancestors = tuple(reader.resolve(template, path) for path, template in site.ancestors)
        vector = cost(reader.resolve(site.template, site.path), Context(site.path, ancestors))
        return tuple(sorted(reader.reads)), np.asarray(vector, dtype=float)


def _holds(condition: Condition, genes: np.ndarray) -> np.ndarray:
    """Where a condition holds, bool of shape (n,)."""
    holds = np.ones(len(genes), dtype=bool)
    for gene, low, high in condition:
        holds &= (genes[:, gene] >= low) & (genes[:, gene] <= high)
    return holds
