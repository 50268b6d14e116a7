"""The study loop: what an ask has seen, and a killed study going on as if it had not been."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nas.errors import RunError
from nas.executor import EvaluationError, SerialExecutor
from nas.log import TrialLog
from nas.objectives import Objective
from nas.pareto import Scale
from nas.searchers import NSGA2, RandomSearch, Searcher
from nas.space import Space, oneof
from nas.study import HOPELESS, Cache, Study, accuracy_cache
from nas.trial import Candidate, Evaluation, Trial


@dataclass(frozen=True)
class Net:
    widths: Any


SPACE = Space(Net((oneof(1, 2, 3, 4),) * 4))
OBJECTIVES = (Objective("accuracy", "%", "maximize"), Objective("latency_ms", "ms", "minimize"))
SCALE = Scale(ideal=(-10, 4), nadir=(0, 16))


def evaluate(candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
    widths = candidate.architecture.widths
    figures = {"accuracy": math.log(math.prod(widths) + 1), "latency_ms": float(sum(widths))}
    return Evaluation(figures, n=100, std_error=0.5)


class Counting:
    """Counts evaluations and raises `fault` at some of them."""

    def __init__(self, faults: Iterable[int] = (), fault: BaseException | None = None) -> None:
        self.calls = 0
        self.faults = set(faults)
        self.fault = fault or ValueError("no such layer")

    def __call__(self, candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
        self.calls += 1
        if self.calls - 1 in self.faults:
            raise self.fault
        return evaluate(candidate, known)


@pytest.fixture
def log(tmp_path: Path) -> TrialLog:
    return TrialLog(tmp_path / "trials.jsonl", SPACE)


def make(
    log: TrialLog,
    evaluate: Any = evaluate,
    searcher: Searcher | None = None,
    trials: int = 30,
    parallel: int = 3,
    name: str = "nsga2",
    weights: str = "w",
    **options: Any,
) -> Study:
    searcher = searcher or NSGA2(SPACE, OBJECTIVES, seed=0, population=8)
    executor = SerialExecutor(evaluate)
    settings = {"trials": trials, "parallel": parallel, "weights": weights, **options}
    return Study(name, SPACE, OBJECTIVES, searcher, executor, log, **settings)


class Recorder:
    """A random search that notes what it was told before each ask."""

    def __init__(self, limit: int = 10**9) -> None:
        self.inner = RandomSearch(SPACE, OBJECTIVES, seed=0)
        self.limit = limit
        self.told: list[int] = []
        self.seen_at_ask: list[list[int]] = []

    def ask(self, n: int) -> list[Candidate]:
        if len(self.seen_at_ask) >= self.limit:
            return []
        self.seen_at_ask.append(list(self.told))
        return self.inner.ask(n)

    def tell(self, trials: Sequence[Trial]) -> None:
        self.told += [trial.number for trial in trials]


@pytest.mark.parametrize("parallel", [1, 4])
def test_ask_k_sees_exactly_trials_up_to_k_minus_parallel(log: TrialLog, parallel: int) -> None:
    recorder = Recorder()
    make(log, searcher=recorder, trials=10, parallel=parallel).run()
    expected = [list(range(max(0, k - parallel + 1))) for k in range(10)]
    assert recorder.seen_at_ask == expected
    assert recorder.told == list(range(10))


def test_the_log_holds_what_run_returns(log: TrialLog) -> None:
    trials = make(log).run()
    assert [t.number for t in trials] == list(range(30))
    assert log.read() == trials
    first = trials[0]
    assert (first.state, first.n, first.std_error, first.evaluated) == ("complete", 100, 0.5, True)
    assert SPACE.decode(first.genes) == first.architecture


@pytest.mark.parametrize("killed_at", [0, 1, 7, 29])
def test_killed_and_resumed_is_as_never_killed(log: TrialLog, tmp_path: Path, killed_at: int) -> None:
    whole = make(TrialLog(tmp_path / "whole.jsonl", SPACE)).run()
    with pytest.raises(KeyboardInterrupt):
        make(log, Counting([killed_at], KeyboardInterrupt())).run()
    assert len(log.read()) == killed_at
    counting = Counting()
    assert make(log, counting).run() == whole
    assert counting.calls == 30 - killed_at
    assert log.read() == whole


def test_a_finished_study_evaluates_nothing(log: TrialLog) -> None:
    whole = make(log).run()
    counting = Counting()
    assert make(log, counting).run() == whole
    assert counting.calls == 0


def test_resuming_may_raise_the_number_of_trials(log: TrialLog, tmp_path: Path) -> None:
    make(log, trials=12).run()
    longer = make(TrialLog(tmp_path / "longer.jsonl", SPACE), trials=30).run()
    assert make(log, trials=30).run() == longer


def test_failed_trials_are_logged_and_the_study_goes_on(log: TrialLog) -> None:
    trials = make(log, Counting([0, 5])).run()
    assert [t.number for t in trials if t.state == "failed"] == [0, 5]
    assert trials[5].error == "ValueError: no such layer"
    assert (trials[5].objectives, trials[5].n) == ({}, None)
    assert log.read() == trials


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_an_objective_that_is_missing_or_not_finite_fails_the_trial(
    log: TrialLog, value: float | None
) -> None:
    def spoiled(candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
        result = evaluate(candidate, known)
        if candidate.architecture.widths[0] < 4:
            return result
        objectives = {**result.objectives, "latency_ms": value}
        return replace(result, objectives={k: v for k, v in objectives.items() if v is not None})

    failed = [t for t in make(log, spoiled).run() if t.state == "failed"]
    assert failed
    assert all("finite `latency_ms`" in str(t.error) for t in failed)


def test_a_study_in_which_all_fails_stops_with_the_first_error(log: TrialLog) -> None:
    with pytest.raises(RunError, match=rf"first {HOPELESS} .*ValueError: no such layer"):
        make(log, Counting(range(100))).run()
    assert len(log.read()) == HOPELESS


def test_a_mended_study_goes_on_after_its_failures(log: TrialLog) -> None:
    with pytest.raises(RunError):
        make(log, Counting(range(100))).run()
    assert [t.state for t in make(log).run()] == ["failed"] * HOPELESS + ["complete"] * 10


def test_an_exhausted_space_ends_the_study(log: TrialLog) -> None:
    searcher = RandomSearch(SPACE, OBJECTIVES, seed=0)
    assert len(make(log, searcher=searcher, trials=1000).run()) == SPACE.size == 256


def test_a_searcher_that_waits_is_asked_again_after_the_next_trial(log: TrialLog) -> None:
    class Generations(Recorder):
        """Asks for four, then waits until all four are told."""

        def ask(self, n: int) -> list[Candidate]:
            asked = len(self.seen_at_ask)
            return super().ask(n) if asked % 4 or len(self.told) == asked else []

    searcher = Generations()
    assert len(make(log, searcher=searcher, trials=10, parallel=8).run()) == 10
    assert [len(seen) for seen in searcher.seen_at_ask] == [0] * 4 + [4] * 4 + [8] * 2


def test_another_search_of_the_same_log_is_left_alone(log: TrialLog) -> None:
    first = make(log, trials=5).run()
    second = make(log, name="random", trials=5, searcher=RandomSearch(SPACE, OBJECTIVES)).run()
    assert log.read() == first + second
    assert [t.number for t in second] == list(range(5))


def test_a_cached_accuracy_is_not_computed_again(log: TrialLog) -> None:
    asked: list[Mapping[str, float]] = []

    def latency_only(candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
        asked.append(known)
        result = evaluate(candidate, known)
        if "accuracy" in known:  # on this device, all is three times slower
            return Evaluation({"latency_ms": 3 * result.objectives["latency_ms"]})
        return result

    def search(name: str, cache: Cache | None = None, weights: str = "w") -> list[Trial]:
        searcher = RandomSearch(SPACE, OBJECTIVES, seed=0)
        return make(log, latency_only, searcher, 6, name=name, cache=cache, weights=weights).run()

    first = search("pi4")
    cache = accuracy_cache(first[:4], "accuracy")
    second = search("jetson", cache)
    assert [t.evaluated for t in second] == [False] * 4 + [True] * 2
    assert asked[6:] == [{"accuracy": t.objectives["accuracy"]} for t in first[:4]] + [{}, {}]
    assert second[0].objectives == {
        "accuracy": first[0].objectives["accuracy"],
        "latency_ms": 3 * first[0].objectives["latency_ms"],
    }
    assert (second[0].n, second[0].std_error) == (100, 0.5)
    assert all(t.evaluated for t in search("other", cache, weights="retrained"))


def test_on_trial_hears_every_trial_and_the_hypervolume(log: TrialLog) -> None:
    def heard(**options: Any) -> list[tuple[Trial, float | None]]:
        calls: list[tuple[Trial, float | None]] = []
        make(log, on_trial=lambda *call: calls.append(call), **options).run()
        return calls

    calls = heard(scale=SCALE)
    volumes = [volume for _, volume in calls if volume is not None]
    assert [t for t, _ in calls] == log.read()
    assert volumes == sorted(volumes)
    assert len(set(volumes)) > 1
    assert len(volumes) == 30
    assert heard(scale=SCALE) == calls  # from the log
    assert {volume for _, volume in heard()} == {None}


@pytest.mark.parametrize(
    ("changed", "law"),
    [
        ({"searcher": NSGA2(SPACE, OBJECTIVES, seed=1, population=8)}, "asked for before"),
        ({"parallel": 5}, "asked for before"),
        ({"weights": "retrained"}, "weights retrained, but is of w"),
    ],
)
def test_a_changed_study_is_not_resumed(log: TrialLog, changed: dict[str, Any], law: str) -> None:
    make(log).run()
    with pytest.raises(RunError, match=law):
        make(log, **changed).run()


def test_a_log_with_a_lost_line_is_not_resumed(log: TrialLog) -> None:
    make(log).run()
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:4] + lines[5:]))
    with pytest.raises(RunError, match=r"trial 5 .* must be number 4"):
        make(log).run()


def test_a_log_with_other_objectives_is_not_resumed(log: TrialLog) -> None:
    make(log).run()
    study = make(log)
    study.objectives = (*OBJECTIVES, Objective("size_bytes", "B", "minimize"))
    with pytest.raises(RunError, match=r"lacks \['size_bytes'\]"):
        study.run()


def test_no_candidate_in_flight_is_refused(log: TrialLog) -> None:
    with pytest.raises(RunError, match=r"parallel >= 1"):
        make(log, parallel=0)


def test_a_serial_evaluation_that_raises_says_what(log: TrialLog) -> None:
    pending = SerialExecutor(Counting([0])).submit(Candidate(SPACE.smallest()), {})
    with pytest.raises(EvaluationError, match=r"^ValueError: no such layer$"):
        pending.result()
