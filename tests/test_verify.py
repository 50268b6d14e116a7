"""Which trials are verified: the front, and such as an error of measurement keeps from it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from nas.errors import RunError
from nas.objectives import Objective
from nas.phases.verify import hopeful, recommended
from nas.tasks import Metric, Tally

OBJECTIVES = (Objective("accuracy", "%", "maximize"), Objective("ms", "ms", "minimize"))


@dataclass(frozen=True)
class Tried:
    objectives: dict[str, float]
    std_error: float | None = None


def trials(*rows: tuple[float, float], error: float | None = 1.0) -> list[Tried]:
    return [Tried({"accuracy": accuracy, "ms": ms}, error) for accuracy, ms in rows]


def finalists(tried: list[Tried], limit: int) -> list[tuple[float, float]]:
    task = SimpleNamespace(metric=SimpleNamespace(name="accuracy"))
    run = SimpleNamespace(
        evaluator=lambda device: SimpleNamespace(objectives=OBJECTIVES),
        experiment=SimpleNamespace(search=SimpleNamespace(finalists=limit), task=task),
    )
    found = sys.modules["nas.phases.verify"]._finalists(run, None, tried)
    return [(t.objectives["accuracy"], t.objectives["ms"]) for t in found]


def test_a_standard_error_decides_who_is_hopeful():
    costs = np.array([[-90.0, 1.0], [-89.5, 2.0], [-88.5, 3.0], [-89.1, 1.0]])
    assert hopeful(costs, np.ones(4), 0).tolist() == [True, True, False, True]
    assert hopeful(costs, np.zeros(4), 0).tolist() == [True, False, False, False]


def test_the_largest_may_be_better_than_a_lucky_small_one():
    tried = trials((80, 0.5), (90, 1), (89.5, 2), (89.9, 8), (85, 9))
    assert set(finalists(tried, 8)) == {(80, 0.5), (90, 1), (89.5, 2), (89.9, 8)}
    assert set(finalists(trials((80, 0.5), (90, 1), (89.9, 8), error=None), 8)) == {(80, 0.5), (90, 1)}


def test_a_quarter_of_the_places_is_for_them():
    front = [(50.0 + i, 1.0 + i) for i in range(12)]
    lucky = [(60.5, 20.0 + i) for i in range(6)]
    chosen = finalists(trials(*front, *lucky), 8)
    assert len(chosen) == 8
    assert len(set(chosen) & set(front)) == 6
    assert {(50.0, 1.0), (61.0, 12.0)} <= set(chosen)
    assert (60.5, 25.0) in chosen  # at the end of what they cost


def test_equal_figures_are_verified_once():
    assert finalists(trials((90, 1), (90, 1), (80, 0.5)), 8) == [(90, 1), (80, 0.5)]


@pytest.mark.parametrize(("finite", "left"), [((True, False), 1), ((False, False), 0)])
def test_a_subnet_whose_metric_is_no_number_is_left_out(finite, left, monkeypatch, capsys):
    """The front would be that one alone: nothing is better or worse than nan."""
    verify = sys.modules["nas.phases.verify"]
    task = SimpleNamespace(metric=Metric("R2", "", "maximize"))
    supernet = SimpleNamespace(extract=lambda a, buffers: a)
    run = SimpleNamespace(experiment=SimpleNamespace(task=task), supernet=supernet)
    monkeypatch.setattr(verify, "statistics", lambda *_: {})
    monkeypatch.setattr(
        verify, "accuracy", lambda a, _, split: Tally(0.5 if a or split == "select" else math.nan, 1, 1)
    )
    monkeypatch.setattr(verify, "measure_beside_references", lambda *_: None)
    monkeypatch.setattr(verify, "_entry", lambda *found: found[2].id)
    given = [SimpleNamespace(id=f"{i}", architecture=sane) for i, sane in enumerate(finite)]
    if left:
        assert verify._verify(run, SimpleNamespace(name="pi4"), given) == ["0"]
        assert "1 is left out: R2 on test is nan." in capsys.readouterr().out
    else:
        with pytest.raises(
            RunError, match=r"must have a finite metric .* but 0 has none: R2 on test is nan\."
        ):
            verify._verify(run, SimpleNamespace(name="pi4"), given)


def test_a_metric_of_a_whole_split_has_no_error():
    """Such as a mean intersection over union: the best itself is recommended."""
    points = [(1.0, 50.0), (2.0, 60.0), (3.0, 55.0)]
    front = [
        {"objectives": {"ms": {"measured": ms}, "miou": {"measured": miou, "std_error": None}}}
        for ms, miou in points
    ]
    assert recommended(front, "miou", "ms", "maximize") is front[1]
