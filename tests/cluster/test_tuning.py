"""Settings are tried out: the best come first, the hopeless end early, and what was tried counts."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from unittest.mock import Mock

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from nas.cluster.local import connect, of_a_training
from nas.cluster.tuning import REDUCTION, STUDY, rungs, several, tune
from nas.errors import RunError

HERE = [sys.modules[__name__]]
SPACE = {"a.rate": FloatDistribution(0.0, 1.0), "a.kind": CategoricalDistribution(["x", "y"])}
FIRST = {"a.rate": 0.25, "a.kind": "y"}


@pytest.fixture(scope="module", autouse=True)
def ray():
    stop = connect(2, None)
    yield
    stop()


def objective(best, settings, report):
    for epoch in rungs(9):
        report(epoch, epoch - 10 * abs(settings["a.rate"] - best) + (settings["a.kind"] == "y"))


def fails(shared, settings, report):
    raise ValueError("no training")


def test_the_best_of_all_that_was_tried(tmp_path):
    told = []
    options = {"longest": 9, "first": FIRST, "by_value": HERE}

    def note(tried):
        told.append(tried)
        met.append(signal.getsignal(signal.SIGINT))

    before, met = signal.getsignal(signal.SIGINT), []
    found = tune(objective, 0.5, SPACE, tmp_path / "a.db", samples=6, on_trial=note, **options)
    assert len(found) == len(told) == 6
    assert set(met) == {before}  # Ray's own would take Ctrl-C for the end of all that was to be tried
    assert found == sorted(found, key=lambda t: (t.time, t.score), reverse=True)
    assert sorted(t.number for t in told) == list(range(6))
    (first,) = (t for t in found if t.number == 0)
    assert first.settings == FIRST
    assert found[0].time == 9
    assert min(t.time for t in found) in (1, 3)  # ended early
    assert {(t.number, t.time) for t in told} == {(t.number, t.time) for t in found}  # as Ray Tune had it
    more = tune(objective, 0.5, SPACE, tmp_path / "a.db", samples=8, on_trial=told.append, **options)
    assert len(more) == 8
    assert len(told) == 8
    assert {(t.number, t.score) for t in found} <= {(t.number, t.score) for t in more}
    done = tune(objective, 0.5, SPACE, tmp_path / "a.db", samples=8, on_trial=told.append, **options)
    assert done == more
    assert len(told) == 8


def test_what_was_judged_last_counts_more_than_what_ended_early(tmp_path):
    """Also where that had a higher score: at the same time others had a higher one yet."""
    study = optuna.create_study(study_name=STUDY, storage=f"sqlite:///{tmp_path / 'a.db'}")
    for score, reports in ((0.9, 0), (0.5, 2), (0.6, 2), (0.7, 1)):
        values = dict.fromkeys(range(1, reports + 1), 0.1)
        study.add_trial(
            optuna.trial.create_trial(
                value=score, intermediate_values=values, params=FIRST, distributions=SPACE
            )
        )
    found = tune(objective, 0.5, SPACE, tmp_path / "a.db", samples=4, longest=9)
    assert [(t.time, t.score) for t in found] == [(9, 0.6), (9, 0.5), (3, 0.7), (1, 0.9)]


def first_is_slow(best, settings, report):
    if settings == FIRST:
        time.sleep(4)
    objective(best, settings, report)


def test_their_numbers_are_those_of_the_storage_though_they_end_in_another_order(tmp_path):
    told = []
    options = {"longest": 9, "first": FIRST, "by_value": HERE, "on_trial": told.append}
    found = tune(first_is_slow, 0.5, SPACE, tmp_path / "a.db", samples=2, **options)
    assert {t.number: t.settings for t in told} == {t.number: t.settings for t in found}
    assert next(t for t in told if t.number == 0).settings == FIRST


def test_they_are_compared_where_asha_does():
    """Else it would look at scores of other times."""
    from ray.tune.schedulers import ASHAScheduler  # only now: Ray reads the environment on import

    for longest in (1, 2, 3, 4, 9, 20, 27, 100):
        scheduler = ASHAScheduler(max_t=longest, grace_period=1, reduction_factor=REDUCTION)
        milestones = {milestone for milestone, _ in scheduler._brackets[0]._rungs}
        assert sorted(milestones | {longest}) == rungs(longest)


def test_the_first_is_tried_though_a_call_before_was_killed_in_it(tmp_path):
    options = {"longest": 9, "by_value": HERE}
    tune(objective, 0.5, SPACE, tmp_path / "a.db", samples=1, **options)
    found = tune(objective, 0.5, SPACE, tmp_path / "a.db", samples=2, first=FIRST, **options)
    assert FIRST in [t.settings for t in found]


def test_nothing_that_works_is_an_error(tmp_path):
    failures = []
    options = {"samples": 2, "longest": 2, "by_value": HERE, "on_failure": failures.append}
    with pytest.raises(RunError, match="must reach a score, but none of 2 did"):
        tune(fails, None, SPACE, tmp_path / "b.db", **options)
    assert len(failures) == 2
    assert all("ValueError: no training" in failure for failure in failures)


def fails_below(least, settings, report):
    if settings["a.rate"] < least:
        raise RunError("too low")
    objective(least, settings, report)


def test_what_failed_is_not_tried_again(tmp_path):
    """A later call tries others in its place, and would draw the same where only what ended well counted."""
    storage, options = tmp_path / "a.db", {"longest": 1, "first": FIRST, "by_value": HERE, "samples": 2}
    for _ in range(3):
        with pytest.raises(RunError, match="none of 2 did: too low"):
            tune(fails_below, 2.0, SPACE, storage, **options)
    trials = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{storage}").get_trials()
    tried = [t.params["a.rate"] for t in trials]
    assert len(tried) == len(set(tried)) == 6
    assert tried.count(FIRST["a.rate"]) == 1


def is_refused(shared, settings, report):
    raise RunError("The loss must stay finite,\nbut is not.")


def test_what_we_say_ourselves_is_said_alone(tmp_path):
    """Without the traceback that Ray logs of each."""
    failures, logged = [], []
    handler = logging.Handler()
    handler.emit = logged.append
    logging.getLogger("ray.tune").addHandler(handler)
    options = {"samples": 2, "longest": 2, "by_value": HERE, "on_failure": failures.append}
    with pytest.raises(RunError, match=r"none of 2 did: The loss must stay finite,\nbut is not\.$"):
        tune(is_refused, None, SPACE, tmp_path / "b.db", **options)
    assert failures == ["The loss must stay finite,\nbut is not."] * 2
    logging.getLogger("ray.tune").removeHandler(handler)
    assert not logged
    with pytest.raises(RunError, match=r"^Training must not fail, but did: The loss must stay finite"):
        several(is_refused, None, [1], on_end=print, by_value=HERE)


class OutOfMemory:
    """As Ray Tune ends where a process of it was ended for want of memory (seen with Ray 2.56)."""

    def __init__(self, *args, **kwargs): ...

    def fit(self):
        from ray.air.execution._internal.actor_manager import RayActorManager
        from ray.exceptions import OutOfMemoryError

        RayActorManager(Mock())._actor_task_failed(Mock(), OutOfMemoryError("1 worker(s) were killed"))


def test_want_of_memory_is_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.tune.Tuner", OutOfMemory)
    message = r"Memory must hold 2 training\(s\) at once.* the same command goes on"
    with pytest.raises(RunError, match=message):
        tune(objective, 0.5, SPACE, tmp_path / "a.db", samples=2, longest=2, by_value=HERE)
    with pytest.raises(RunError, match=message):
        several(rises_until, None, [1], on_end=print, by_value=HERE)


def fails_at_one(shared, item, report):
    if item == 1:
        raise ValueError("no training")
    rises_until(shared, item, report)


def rises_until(best, item, report):
    for epoch in range(1, 13):
        report(epoch, float(min(epoch, item)), 0.5 * epoch)


def test_several_tell_their_last_word():
    figures = {}
    several(rises_until, None, [2, 20], on_end=figures.__setitem__, by_value=HERE)
    assert figures == {
        2: {"epoch": 12, "time": 12, "score": 2.0, "core_seconds": 6.0},
        20: {"epoch": 12, "time": 12, "score": 12.0, "core_seconds": 6.0},
    }


def tells_its_process(shared, item, report):
    report(1, float(os.getpid()))


def test_a_process_trains_one_after_the_other():
    """To start one and to import PyTorch in it takes as long as a short training."""
    processes = []
    items = list(range(6))
    several(tells_its_process, None, items, on_end=lambda _, f: processes.append(f["score"]), by_value=HERE)
    assert len(processes) == 6
    assert len(set(processes)) <= 3  # two at once, and one that may have been started too many


def test_what_ended_is_told_also_where_another_fails():
    ended = []
    with pytest.raises(RunError, match=r"(?s)Training must not fail, but did: .*ValueError: no training"):
        several(fails_at_one, None, [1, 3], on_end=lambda i, _: ended.append(i), by_value=HERE)
    assert ended == [3]


@pytest.mark.parametrize(
    ("gpus", "device", "at_once", "wanted"),
    [
        (0, "auto", 2, {"cpu": 1}),
        (1, "auto", 3, {"cpu": 1, "gpu": 0.333}),
        (1, "cuda", 1, {"cpu": 1, "gpu": 1.0}),
        (8, "auto", 2, {"cpu": 1, "gpu": 1.0}),
        (8, "cpu", 2, {"cpu": 1}),
        (8, "cuda:3", 2, {"cpu": 1}),
    ],
)
def test_trainings_ask_for_the_gpus_that_there_are(gpus, device, at_once, wanted, monkeypatch):
    import ray

    there = {"CPU": 4.0} | ({"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    assert of_a_training(device, at_once) == wanted
