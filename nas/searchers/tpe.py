"""TPE: Optuna's sampler behind our protocol."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from nas.objectives import Objective, as_costs
from nas.searchers.base import Unseen
from nas.space import Space
from nas.trial import Candidate, Trial


class TPE:
    """Multi-objective tree-structured Parzen estimator, Ozaki et al., 2022.

    Optuna is asked gene by gene, for active genes only, and is told what was evaluated: the legal
    architecture next to its suggestion or, where that had been asked for before, a neighbour.

    Args:
        startup: complete trials before the estimator takes over from random sampling, which is the
            space's: uniform over what is legal.
    """

    STEPS = 50
    """Mutations of a suggestion that was seen, before a random architecture takes its place."""

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        seed: int = 0,
        startup: int = 20,
    ) -> None:
        self.space = space
        self.objectives = tuple(objectives)
        self.startup = startup
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(space)
        self._complete = 0
        self._choices = {gene.name: CategoricalDistribution(range(gene.cardinality)) for gene in space.genes}
        with _quiet():
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=0, multivariate=True, group=True, constant_liar=False
            )
            self._study = optuna.create_study(sampler=sampler, directions=["minimize"] * len(self.objectives))

    def ask(self, n: int) -> list[Candidate]:
        proposed = (self._propose() for _ in range(n))
        return [Candidate(self.space.decode(genes)) for genes in proposed if genes is not None]

    def tell(self, trials: Sequence[Trial]) -> None:
        complete = [trial for trial in trials if trial.state == "complete"]
        costs = as_costs(self.objectives, [trial.objectives for trial in complete])
        for trial, cost in zip(complete, costs, strict=True):
            self._study.add_trial(self._as_optuna(trial, cost))
        self._complete += len(complete)

    def _as_optuna(self, trial: Trial, cost: np.ndarray) -> optuna.trial.FrozenTrial:
        active = self.space.active(trial.genes)
        names = [gene.name for gene, asked in zip(self.space.genes, active, strict=True) if asked]
        genes = np.array(trial.genes)[active].tolist()
        return optuna.trial.create_trial(
            params=dict(zip(names, genes, strict=True)),
            distributions={name: self._choices[name] for name in names},
            values=cost.tolist(),
        )

    def _propose(self) -> np.ndarray | None:
        """Genes (genes,) of the next candidate, None when the space is exhausted."""
        if self._complete < self.startup:
            return self._unseen.sample(self._rng)
        genes = self.space.repair(self._suggest())
        if self._unseen.take(genes):
            return genes
        neighbour = self._unseen.near(genes, self._rng, self.STEPS)
        return self._unseen.sample(self._rng) if neighbour is None else neighbour

    def _suggest(self) -> np.ndarray:
        """A suggestion (genes,), perhaps illegal. A gene comes after those that can silence it."""
        trial = self._study.ask()
        genes = [0] * len(self.space.genes)
        for i, gene in enumerate(self.space.genes):
            if self.space.active(genes)[i]:
                choices = self._choices[gene.name].choices
                genes[i] = int(trial.suggest_categorical(gene.name, choices))  # type: ignore[arg-type]
        # Optuna learns from the repaired genes instead, once they are evaluated
        self._study.tell(trial, state=TrialState.FAIL)
        return np.array(genes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's notices that a study was created and that grouping is experimental."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
