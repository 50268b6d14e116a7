"""Random search: the baseline that every searcher must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.objectives import Objective
from nas.searchers.base import Unseen
from nas.space import Space
from nas.trial import Candidate, Trial


class RandomSearch:
    """Samples the space without replacement. As a baseline for NAS: Li & Talwalkar, 2019."""

    def __init__(self, space: Space, objectives: Sequence[Objective], seed: int = 0) -> None:
        self.space = space
        self.objectives = tuple(objectives)
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(space)

    def ask(self, n: int) -> list[Candidate]:
        sampled = (self._unseen.sample(self._rng) for _ in range(n))
        return [Candidate(self.space.decode(genes)) for genes in sampled if genes is not None]

    def tell(self, trials: Sequence[Trial]) -> None:
        pass
