"""Sampling by cost: "between 1 and 2 million MACs"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nas.errors import SpaceError
from nas.space.space import Space

CROWD = 256  # architectures that look for the range together
KEPT = 0.25  # share of them that is nearest, and goes on
COMMON = 0.05  # share of all draws from which on plain rejection is cheaper than a walk
PATIENCE = 12  # levels without an architecture that is nearer
STEPS = 30  # of the walk between two draws


class EmptyRange(SpaceError):
    """No architecture was found in a range of costs."""


@dataclass(frozen=True)
class Within:
    """The architectures of a space whose cost lies in a range, to be sampled like a space.

    Where more than 5 % of what `space.sample` draws lie in the range, a sample is such a draw. Else a crowd
    of architectures is led there by subset simulation (Au & Beck, 2001): the quarter that is nearest stays,
    moves by mutations that lead no further away, and multiplies. A sample then is a member of that crowd
    after a walk of 30 mutations within the range. It favours no member, but may miss a corner of the range
    that no mutation joins with the rest.

    Args:
        cost: of genes (n, genes), as (n,), or (n, 1) such as `Additive` of one column gives.
        low, high: ends of the range, both in it.

    Raises:
        EmptyRange: no architecture was found in the range; names the nearest cost there is.

    Example:
        >>> figures = costs.figures(space, image_side=32)
        >>> between = Within(space, lambda genes: figures(genes)[:, costs.FIGURES.index("mmacs")], 1, 2)
        >>> architecture = between.sample(np.random.default_rng(0))
    """

    space: Space
    cost: Callable[[np.ndarray], np.ndarray]
    low: float
    high: float

    def __post_init__(self) -> None:
        for name, end in (("low", self.low), ("high", self.high)):
            if not isinstance(end, (int, float)) or isinstance(end, bool) or end != end:
                raise SpaceError(f"`{name}` must be a number: got {end!r}.")
        if not self.low <= self.high:
            raise SpaceError(
                f"A range of costs must not end before it begins: got {self.low} to {self.high}."
            )

    def sample(self, rng: np.random.Generator) -> Any:
        """An architecture whose cost lies in the range."""
        return self.space.decode(self.sample_genes(rng))

    def sample_genes(self, rng: np.random.Generator) -> np.ndarray:
        """Its integer vector (genes,)."""
        members, common = self._members
        if not common:
            start = members[rng.integers(len(members))]
            return self._walk(start[None], 0.0, STEPS, rng)[0]
        while True:
            drawn = self._drawn(16, rng)
            inside = drawn[self._distance(drawn) == 0]
            if len(inside):
                return inside[0]

    @cached_property
    def _members(self) -> tuple[np.ndarray, bool]:
        """Architectures in the range, (n, genes), and whether it is so common that draws hit it."""
        rng = np.random.default_rng(0)
        crowd = self._drawn(CROWD, rng)
        distance = self._distance(crowd)
        if (distance == 0).mean() >= COMMON:
            return crowd[distance == 0], True
        level, patience = np.inf, PATIENCE
        while (distance == 0).mean() < KEPT and patience:
            order = np.argsort(distance, kind="stable")[: int(CROWD * KEPT)]
            patience = PATIENCE if distance[order[-1]] < level else patience - 1
            level = distance[order[-1]]
            nearest = crowd[order[0]]  # never lost
            crowd = self._walk(np.resize(crowd[order], crowd.shape), level, 4, rng)
            crowd[0] = nearest
            distance = self._distance(crowd)
        if not (distance == 0).any():
            raise EmptyRange(self._nothing(crowd[[distance.argmin()]]))
        return crowd[distance == 0], False

    def _walk(self, crowd: np.ndarray, level: float, steps: int, rng: np.random.Generator) -> np.ndarray:
        """(n, genes) after mutations, of which those are taken that stay within distance `level`."""
        for _ in range(steps):
            moved = np.array([self.space.mutate(genes, rng) for genes in crowd])
            stays = self._distance(moved) <= level
            crowd = np.where(stays[:, None], moved, crowd)
        return crowd

    def _drawn(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return np.array([self.space.sample_genes(rng) for _ in range(n)])

    def _distance(self, genes: np.ndarray) -> np.ndarray:
        """How far each row's cost is from the range, (n,); 0 inside."""
        cost = self._costs(genes)
        return np.maximum(0, np.maximum(self.low - cost, cost - self.high))

    def _costs(self, genes: np.ndarray) -> np.ndarray:
        costs = np.asarray(self.cost(genes), dtype=float)
        if costs.shape not in ((len(genes),), (len(genes), 1)) or np.isnan(costs).any():
            raise SpaceError(
                f"`cost` must give a number per row of genes: got shape {costs.shape} for {len(genes)} rows"
                f"{', some of them NaN' if np.isnan(costs).any() else ''}. Pick one column, as "
                f"`lambda genes: figures(genes)[:, 1]`."
            )
        return costs.reshape(len(genes))

    def _nothing(self, nearest: np.ndarray) -> str:
        return (
            f"A range of costs must hold an architecture of the space, but none was found between "
            f"{self.low:g} and {self.high:g}: the nearest costs {self._costs(nearest)[0]:g}. Widen it."
        )
