"""Evaluations on Ray: the same trials as in one process, whatever happens to the workers."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.cluster import RayExecutor
from nas.executor import EvaluationError, Executor, SerialExecutor
from nas.log import TrialLog
from nas.objectives import Objective
from nas.searchers import NSGA2
from nas.space import Space, oneof
from nas.study import Study
from nas.trial import Candidate, Evaluation, Trial


@dataclass(frozen=True)
class Net:
    widths: Any


SPACE = Space(Net((oneof(1, 2, 3, 4),) * 4))
OBJECTIVES = (Objective("accuracy", "%", "maximize"), Objective("latency_ms", "ms", "minimize"))


def evaluate(candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
    """Raises for some architectures."""
    widths = candidate.architecture.widths
    if widths[1] == 2:
        raise ValueError(f"no layer for {widths}")
    return Evaluation({"accuracy": math.prod(widths), "latency_ms": sum(widths), **known}, n=10)


@dataclass(frozen=True)
class Dying:
    """Ends its process, once per architecture if it may `remember` that, else always."""

    folder: Path
    remember: bool

    def __call__(self, candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
        trace = self.folder / SPACE.id(candidate.architecture)
        if candidate.architecture.widths[0] == 4 and not (self.remember and trace.exists()):
            trace.touch()
            os._exit(1)
        return evaluate(candidate, known)


class Weights:
    """Reports what it was unpacked with, and how often this process did so."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = weight

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.unpacked = int(os.environ.get("TEST_UNPACKED", "0")) + 1
        os.environ["TEST_UNPACKED"] = str(self.unpacked)

    def __call__(self, candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
        facts = {
            "unpacked": self.unpacked,
            "writeable": self.weight.flags.writeable,
            "sum": self.weight.sum(),
        }
        return Evaluation({name: float(fact) for name, fact in facts.items()})


Make = Callable[..., RayExecutor]


@pytest.fixture(scope="module")
def executor() -> Iterator[Make]:
    """Makes executors on one local Ray, which starts in seconds."""

    def make(evaluate: Any, **options: Any) -> RayExecutor:
        return RayExecutor(evaluate, by_value=[sys.modules[__name__]], **options)

    with make(evaluate, workers=2):
        yield make


def run(executor: Executor, path: Path, trials: int = 24) -> list[Trial]:
    searcher = NSGA2(SPACE, OBJECTIVES, seed=0, population=8)
    log = TrialLog(path / "trials.jsonl", SPACE)
    study = Study("ray", SPACE, OBJECTIVES, searcher, executor, log, trials=trials, parallel=3, weights="w")
    return study.run()


def test_trials_are_those_of_a_serial_study(executor: Make, tmp_path: Path) -> None:
    for name in ("serial", "ray"):
        (tmp_path / name).mkdir()
    serial = run(SerialExecutor(evaluate), tmp_path / "serial")
    assert run(executor(evaluate), tmp_path / "ray") == serial
    errors = [trial.error for trial in serial if trial.state == "failed"]
    assert errors
    assert all(str(error).startswith("ValueError: no layer for (") for error in errors)


def test_an_evaluation_whose_worker_died_is_tried_again(executor: Make, tmp_path: Path) -> None:
    trials = run(executor(Dying(tmp_path, remember=True)), tmp_path, trials=6)
    assert any(trial.architecture.widths[0] == 4 for trial in trials)
    assert not any("worker" in str(trial.error) for trial in trials)


def test_a_candidate_that_kills_every_worker_fails_alone(executor: Make, tmp_path: Path) -> None:
    trials = run(executor(Dying(tmp_path, remember=False), retries=1), tmp_path, trials=6)
    killers = [trial for trial in trials if trial.architecture.widths[0] == 4]
    assert 0 < len(killers) < 6
    assert all("worker process died at every try" in str(trial.error) for trial in killers)
    assert any(trial.state == "complete" for trial in trials)
    assert not any("worker" in str(trial.error) for trial in trials if trial not in killers)


def test_the_payload_is_unpacked_once_per_worker_and_shared(executor: Make) -> None:
    ray = executor(Weights(np.ones(300_000, np.float32)))
    pending = [ray.submit(Candidate(SPACE.smallest()), {}) for _ in range(30)]
    facts = [p.result().objectives for p in pending]
    assert {f["unpacked"] for f in facts} == {1}
    assert {f["writeable"] for f in facts} == {0}  # memory of the object store, not a copy
    assert {f["sum"] for f in facts} == {300_000}


def test_a_failure_before_the_evaluation_names_its_cause(executor: Make) -> None:
    pending = executor(_Unloadable()).submit(Candidate(SPACE.smallest()), {})
    with pytest.raises(EvaluationError, match="no such module here"):
        pending.result()


class _Unloadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return _import_what_is_missing, ()


def _import_what_is_missing() -> Any:
    raise ImportError("no such module here")


def test_a_builder_that_names_what_torch_names_too_can_travel(executor: Make) -> None:
    """cloudpickle takes `net.classes` beside torch for `torch.classes`, which refuses to be pickled."""

    class Head:
        classes, ops = 3, 1

    def counts(candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
        return Evaluation({"accuracy": float(torch.zeros(Head.classes).numel() + Head.ops)})

    result = executor(counts).submit(Candidate(SPACE.smallest()), {}).result()
    assert result.objectives["accuracy"] == 4


def test_only_loopback_is_listened_on_and_closing_ends_only_what_it_started(
    executor: Make,
) -> None:
    import ray
    from ray._private.process_watcher import psutil  # the one that Ray brings along

    executor(evaluate).close()
    assert ray.is_initialized()
    me = psutil.Process()
    listening = [
        connection.laddr.ip
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}
