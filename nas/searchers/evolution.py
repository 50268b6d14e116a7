"""NSGA-II from pymoo's parts, in steady state: no trial waits for a generation to be complete."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
from pymoo.algorithms.moo.nsga2 import binary_tournament
from pymoo.core.individual import Individual
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from nas.objectives import Objective, as_costs
from nas.searchers.base import Unseen
from nas.space import Space
from nas.trial import Candidate, Trial


class NSGA2:
    """Evolution by non-dominated rank and crowding distance.

    Deb et al., 2002, with the steady-state replacement of Durillo et al., 2009: an ask breeds one
    child; a told trial joins the population, and the worst of them leaves. Selection and survival
    are pymoo's; crossover, mutation and legality are the space's.

    Args:
        population: trials that breed, and size of the first, random generation. It begins with the
            smallest and the largest architecture: ends of most fronts, and hard to find by chance.
        crossover_rate: share of children with two parents; the others are mutants of one.
        mutation_rate: probability to redraw an active gene; by default one a child, on average.
    """

    ATTEMPTS = 50
    """Children bred for one ask, before an unseen random architecture is asked for instead."""

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        seed: int = 0,
        population: int = 24,
        crossover_rate: float = 0.9,
        mutation_rate: float | None = None,
    ) -> None:
        if population < 2:
            raise ValueError(f"`population >= 2` must hold, but got (population={population}).")
        self.space = space
        self.objectives = tuple(objectives)
        self.population = population
        self.crossover_rate = crossover_rate
        self.mutation_rate = mutation_rate
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(space)
        self._asked = 0
        self._survivors = Population()
        self._problem = Problem(n_var=len(space.genes), n_obj=len(self.objectives))
        self._selection = TournamentSelection(func_comp=binary_tournament)
        self._survival = RankAndCrowding()

    def ask(self, n: int) -> list[Candidate]:
        proposed = (self._propose() for _ in range(n))
        return [Candidate(self.space.decode(genes)) for genes in proposed if genes is not None]

    def tell(self, trials: Sequence[Trial]) -> None:
        complete = [trial for trial in trials if trial.state == "complete"]
        costs = as_costs(self.objectives, [trial.objectives for trial in complete])
        for trial, cost in zip(complete, costs, strict=True):
            self._admit(Individual(X=np.array(trial.genes), F=cost))

    def _admit(self, newcomer: Individual) -> None:
        """Replacement of the worst of population + 1."""
        self._survivors = self._survival.do(
            self._problem,
            Population.merge(self._survivors, Population.create(newcomer)),
            n_survive=self.population,
            random_state=self._rng,
        )

    def _propose(self) -> np.ndarray | None:
        """Genes (genes,) of the next candidate, None when the space is exhausted."""
        self._asked += 1
        if self._asked <= self.population:
            return self._first_generation()
        for _ in range(self.ATTEMPTS if len(self._survivors) > 1 else 0):
            child = self._breed()
            if self._unseen.take(child):
                return child
        return self._unseen.sample(self._rng)

    def _first_generation(self) -> np.ndarray | None:
        ends = {1: self.space.smallest, 2: self.space.largest}
        if self._asked in ends:
            genes = self.space.encode(ends[self._asked]())
            if self._unseen.take(genes):
                return genes
        return self._unseen.sample(self._rng)

    def _breed(self) -> np.ndarray:
        mother, father = self._parents()
        child = mother
        if self._rng.random() < self.crossover_rate:
            child = self.space.crossover(mother, father, self._rng)
        return self.space.mutate(child, self._rng, self.mutation_rate)

    def _parents(self) -> np.ndarray:
        """Winners of two binary tournaments, shape (2, genes)."""
        (pair,) = self._selection.do(
            self._problem,
            self._survivors,
            n_select=1,
            n_parents=2,
            random_state=self._rng,
            # pymoo's tournament reads its settings from the algorithm that holds it
            algorithm=SimpleNamespace(tournament_type="comp_by_rank_and_crowding", random_state=self._rng),
        )
        return np.array([parent.X for parent in pair])
