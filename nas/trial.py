"""Records of a search: a `Candidate` is asked for, an `Evaluation` returned, a `Trial` kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

State = Literal["complete", "failed", "pruned"]


@dataclass(frozen=True)
class Candidate:
    """An architecture that a searcher asks for. Higher rungs are costlier, truer evaluations."""

    architecture: Any
    rung: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What evaluating a candidate gave, each objective in its own unit.

    `n` examples and `std_error` say how sure the accuracy is, in the accuracy's unit.
    """

    objectives: Mapping[str, float]
    n: int | None = None
    std_error: float | None = None


@dataclass(frozen=True)
class Trial:
    """One evaluation as the log keeps it.

    A complete trial has objectives and no error, a failed one an error and no objectives, and a
    pruned one, on which the searcher gave up, neither.

    Raises:
        ValueError: the state is unknown, or objectives and error do not go with it.
    """

    search: str
    number: int  # within the search, from 0
    id: str
    architecture: Any
    genes: tuple[int, ...]
    rung: int
    objectives: Mapping[str, float]
    state: State
    n: int | None
    std_error: float | None
    error: str | None
    evaluated: bool  # False when the accuracy came from the cache
    weights: str  # hash of the supernet's weights
    space: str  # fingerprint of the space

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            raise ValueError(f"`state` must be one of {get_args(State)}, but got {self.state!r}.")
        complete, failed = self.state == "complete", self.state == "failed"
        if bool(self.objectives) != complete or (self.error is not None) != failed:
            raise ValueError(
                "Complete trials alone must have objectives, and failed ones an error, but got "
                f"(state={self.state!r}, objectives={self.objectives}, error={self.error!r})."
            )
