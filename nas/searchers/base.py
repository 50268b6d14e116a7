"""What every searcher is, and the memory that keeps one from asking the same architecture twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nas.space import Between, Space, Tied
from nas.trial import Candidate, Trial


class Searcher(Protocol):
    """Proposes architectures and learns from how they did.

    All are made as ``Class(space, objectives, seed=…, …)``. What a searcher asks for is legal and
    never repeats. It follows from the seed and from the asks and tells before it, and from nothing
    else: that is how a study resumes, by replay.
    """

    def ask(self, n: int) -> list[Candidate]:
        """Up to `n` candidates never asked before; [] when there is nothing left to ask for now."""
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learns from finished trials, in whatever order they come. Failed ones teach nothing."""
        ...


class Unseen:
    """The architectures of a space that have not been asked for yet.

    Architectures are held as canonical gene tuples.
    """

    ATTEMPTS = 10_000
    """Samples drawn before a space counts as exhausted, where its size does not show it."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._seen: set[tuple[int, ...]] = set()
        self._size = _size(space)

    def take(self, genes: np.ndarray) -> bool:
        """Whether `genes` (genes,) were unseen; from now on they are not."""
        key = tuple(genes.tolist())
        new = key not in self._seen
        self._seen.add(key)
        return new

    def sample(self, rng: np.random.Generator) -> np.ndarray | None:
        """Random genes (genes,) that were unseen, taken; None when the space is exhausted."""
        for _ in range(self.ATTEMPTS):
            if len(self._seen) >= self._size:
                return None
            genes = self.space.sample_genes(rng)
            if self.take(genes):
                return genes
        return None

    def near(self, genes: np.ndarray, rng: np.random.Generator, steps: int) -> np.ndarray | None:
        """The first unseen genes on a random walk from `genes` (genes,), or None after `steps`."""
        for _ in range(steps):
            genes = self.space.mutate(genes, rng)
            if self.take(genes):
                return genes
        return None


def _size(space: Space) -> float:
    """Number of architectures; infinite with numbers, whose levels `Space.size` leaves aside."""
    holes = (gene.hole.hole if isinstance(gene.hole, Tied) else gene.hole for gene in space.genes)
    return float("inf") if any(isinstance(hole, Between) for hole in holes) else space.size
