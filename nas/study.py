"""`Study`: the loop ask → evaluate → log → tell, and how it goes on after it was killed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nas.errors import RunError
from nas.executor import EvaluationError, Executor, Pending
from nas.log import TrialLog
from nas.objectives import Objective, as_costs
from nas.pareto import Front, Scale
from nas.searchers import Searcher
from nas.space import Space
from nas.trial import Candidate, Evaluation, Trial

HOPELESS = 20
"""So many failures, and not one success, stop a study."""

Cache = Mapping[tuple[str, str, int], Evaluation]
"""Accuracies that need not be computed again, by (architecture id, weights, rung)."""


def accuracy_cache(trials: Iterable[Trial], metric: str) -> Cache:
    """The values of `metric` in `trials`, say of searches for other devices, on the same data."""
    return {
        (trial.id, trial.weights, trial.rung): Evaluation(
            {metric: trial.objectives[metric]}, trial.n, trial.std_error
        )
        for trial in trials
        if trial.state == "complete" and metric in trial.objectives
    }


@dataclass(frozen=True)
class _Flight:
    """A candidate that is being evaluated."""

    number: int
    id: str
    candidate: Candidate
    cached: Evaluation | None
    pending: Pending


class Study:
    """A search for the best trade-offs between objectives, with `parallel` candidates in flight.

    Ask k sees exactly the trials numbered k − `parallel` and below, told in that order. Trials
    therefore do not depend on which evaluation ends first, nor on the executor and its workers.
    The log is all the state there is: a study that was killed asks its searcher once more from the
    beginning, and takes the trials that are in the log from there.

    Args:
        name: of this search; a log may hold several.
        searcher: a new one, as when the search first began.
        executor: evaluates; is left open.
        trials: how many, those in the log included. Resuming may raise it.
        parallel: candidates in flight. Part of the experiment, whatever the number of workers.
        weights: hash of the supernet's weights.
        cache: accuracies that are known already, see `accuracy_cache`.
        scale: of the hypervolume that `on_trial` is told.
        on_trial: called in order with every trial, those in the log included, and the hypervolume
            so far (None without `scale`).

    Example:
        >>> searcher = NSGA2(space, objectives, seed=0)
        >>> log = TrialLog("runs/digits/trials.jsonl", space)
        >>> executor = SerialExecutor(evaluate)
        >>> study = Study("nsga2.pi4", space, objectives, searcher, executor, log,
        ...               trials=200, parallel=4, weights=weights_hash)
        >>> trials = study.run()
    """

    def __init__(
        self,
        name: str,
        space: Space,
        objectives: Sequence[Objective],
        searcher: Searcher,
        executor: Executor,
        log: TrialLog,
        *,
        trials: int,
        parallel: int,
        weights: str,
        cache: Cache | None = None,
        scale: Scale | None = None,
        on_trial: Callable[[Trial, float | None], None] | None = None,
    ) -> None:
        if parallel < 1:
            raise RunError(f"`parallel >= 1` must hold, but got (parallel={parallel}).")
        self.name = name
        self.space = space
        self.objectives = tuple(objectives)
        self.searcher = searcher
        self.executor = executor
        self.log = log
        self.trials = trials
        self.parallel = parallel
        self.weights = weights
        self.cache = cache or {}
        self.scale = scale
        self.on_trial = on_trial
        self._fingerprint = space.fingerprint

    def run(self) -> list[Trial]:
        """All trials of this search, in order; fewer than `trials` where the searcher runs out.

        Raises:
            RunError: the log is not that of this search, or no evaluation succeeds.
        """
        logged = self._logged()
        front = Front(self.scale) if self.scale else None
        flying: deque[_Flight | Trial] = deque()
        done: list[Trial] = []
        while True:
            asked = len(done) + len(flying)
            room = asked < self.trials and len(flying) < self.parallel
            candidates = self.searcher.ask(1) if room else []
            if candidates:
                flying.append(self._launch(asked, candidates[0], logged))
            elif flying:
                trial = self._land(flying.popleft())
                done.append(trial)
                self._require_hope(done, fresh=len(done) - len(logged))
                self.searcher.tell([trial])
                self._report(trial, front)
            else:
                return done

    def _launch(self, number: int, candidate: Candidate, logged: Sequence[Trial]) -> _Flight | Trial:
        """Begins to evaluate the candidate, unless the log tells how that ended."""
        architecture_id = self.space.id(candidate.architecture)
        if number < len(logged):
            _require_replay(logged[number], architecture_id, candidate.rung)
            return logged[number]
        cached = self.cache.get((architecture_id, self.weights, candidate.rung))
        pending = self.executor.submit(candidate, cached.objectives if cached else {})
        return _Flight(number, architecture_id, candidate, cached, pending)

    def _land(self, flight: _Flight | Trial) -> Trial:
        """Waits for the evaluation, and logs it."""
        if isinstance(flight, Trial):
            return flight
        result, error = Evaluation({}), None
        try:
            result = self._result(flight)
        except EvaluationError as failure:
            error = str(failure)
        trial = Trial(
            search=self.name,
            number=flight.number,
            id=flight.id,
            architecture=flight.candidate.architecture,
            genes=tuple(self.space.encode(flight.candidate.architecture).tolist()),
            rung=flight.candidate.rung,
            objectives=result.objectives,
            state="complete" if error is None else "failed",
            n=result.n,
            std_error=result.std_error,
            error=error,
            evaluated=flight.cached is None,
            weights=self.weights,
            space=self._fingerprint,
        )
        self.log.append(trial)
        return trial

    def _result(self, flight: _Flight) -> Evaluation:
        """The evaluation, joined with what the cache knows. Raises EvaluationError."""
        result = flight.pending.result()
        if flight.cached:
            merged = {**result.objectives, **flight.cached.objectives}
            result = replace(flight.cached, objectives=merged)
        values = {name: float(value) for name, value in result.objectives.items()}
        for name in (*(objective.name for objective in self.objectives), *values):
            if not math.isfinite(values.get(name, math.nan)):
                raise EvaluationError(
                    f"An evaluation must give a finite `{name}`, but gave {values.get(name)}."
                )
        return replace(result, objectives=values)

    def _report(self, trial: Trial, front: Front | None) -> None:
        if front and trial.state == "complete":
            front.add(as_costs(self.objectives, [trial.objectives])[0])
        if self.on_trial:
            self.on_trial(trial, front.hypervolume if front else None)

    def _logged(self) -> list[Trial]:
        """The trials of this search in the log. Raises RunError where they cannot be continued."""
        trials = [trial for trial in self.log.read() if trial.search == self.name]
        for number, trial in enumerate(trials):
            self._require_continuation(trial, number)
        return trials

    def _require_continuation(self, trial: Trial, number: int) -> None:
        where = f"{self.log.path}: trial {trial.number} of search `{self.name}`"
        if trial.number != number:
            raise RunError(f"{where} must be number {number}. Was a line lost, or written twice?")
        if trial.weights != self.weights:
            raise RunError(
                f"{where} must be of the weights {self.weights}, but is of {trial.weights}. "
                "Search a supernet that was trained anew in a run directory of its own."
            )
        lost = {objective.name for objective in self.objectives} - trial.objectives.keys()
        if trial.state == "complete" and lost:
            raise RunError(f"{where} must have all objectives, but lacks {sorted(lost)}.{_REMEDY}")

    def _require_hope(self, done: Sequence[Trial], fresh: int) -> None:
        """Raises RunError once all has failed. Resuming, when mended, gives as many new tries."""
        if fresh >= min(HOPELESS, self.trials) and all(t.state == "failed" for t in done):
            raise RunError(
                f"Some evaluation must succeed, but the first {len(done)} of search `{self.name}` "
                f"failed. The first error: {done[0].error}"
            )


_REMEDY = " Start a new run directory, or undo the change."


def _require_replay(logged: Trial, architecture_id: str, rung: int) -> None:
    if (logged.id, logged.rung) != (architecture_id, rung):
        raise RunError(
            f"A resumed search must ask for what it asked for before, but trial {logged.number} of "
            f"`{logged.search}` is {logged.id} at rung {logged.rung} in the log, and now "
            f"{architecture_id} at rung {rung}. Did the seed, space, searcher, its settings or "
            f"`parallel` change?{_REMEDY}"
        )
