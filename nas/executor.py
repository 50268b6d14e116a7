"""Executors: where candidates are evaluated. Here: in this process; on Ray: `nas.cluster`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from nas.trial import Candidate, Evaluation

Evaluate = Callable[[Candidate, Mapping[str, float]], Evaluation]
"""Evaluates a candidate. Objectives that are known already come as the second argument: they need
not be computed again, and what the evaluation says about them is not used."""


class EvaluationError(Exception):
    """A candidate could not be evaluated; the message becomes the `error` of its trial."""


class Pending(Protocol):
    """An evaluation that was submitted."""

    def result(self) -> Evaluation:
        """Waits for it.

        Raises:
            EvaluationError: it failed, after whatever retries its executor makes.
        """
        ...


class Executor(Protocol):
    """Evaluates candidates. Who makes one closes it."""

    def submit(self, candidate: Candidate, known: Mapping[str, float]) -> Pending: ...

    def close(self) -> None:
        """Ends whatever this executor started."""
        ...


def attempt(evaluate: Evaluate, candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
    """`evaluate(candidate, known)`, with any exception in it as an `EvaluationError`."""
    try:
        return evaluate(candidate, known)
    except Exception as error:  # whatever a user's code may raise costs one trial, not the study
        raise EvaluationError(f"{type(error).__name__}: {error}") from error


class SerialExecutor:
    """Evaluates in this process, one candidate at a time, when its result is asked for."""

    def __init__(self, evaluate: Evaluate) -> None:
        self.evaluate = evaluate

    def submit(self, candidate: Candidate, known: Mapping[str, float]) -> Pending:
        return _Deferred(self.evaluate, candidate, known)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Deferred:
    evaluate: Evaluate
    candidate: Candidate
    known: Mapping[str, float]

    def result(self) -> Evaluation:
        return attempt(self.evaluate, self.candidate, self.known)
