"""Figures of trust: as they are defined, on numbers whose answer is known."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from nas import assessment
from nas.assessment import Assessed, close, every, figures, kendall, with_intervals
from nas.errors import RunError
from nas.experiment import load_experiment
from nas.phases.assess import _right_of, _write, assess, read_right, recipe_id
from nas.phases.chosen import Assessment, Chosen
from nas.tasks import Batch, Metric, Tally
from nas.training import Sandwich

IMAGES = 1000


def right(accuracies, rng=None) -> np.ndarray:
    """Rows of which so many images are right."""
    rows = np.zeros((len(accuracies), IMAGES), dtype=bool)
    for row, accuracy in zip(rows, accuracies, strict=True):
        row[: round(IMAGES * accuracy / 100)] = True
    return rows if rng is None else rng.permuted(rows, axis=1)


def assessed(inherited, alone, costs=None, bins=None, seen=True) -> Assessed:
    n = len(inherited)
    costs = np.arange(n) * 0.001 + 1 if costs is None else np.array(costs, dtype=float)
    bins = np.zeros(n, dtype=int) if bins is None else np.array(bins)
    both = np.stack([right(a) for a in alone], 1)
    return Assessed(costs, bins, right(inherited), both, np.broadcast_to(seen, n))


@pytest.mark.parametrize("seed", range(5))
def test_kendall_over_all_pairs_is_scipys(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 8, 20), rng.integers(0, 8, 20)  # with ties
    assert kendall(a, b, every(a)) == pytest.approx(kendalltau(a, b).statistic)


def test_all_ties_have_no_rank():
    assert np.isnan(kendall(np.ones(4), np.arange(4), every(np.arange(4))))


def test_pairs_of_similar_cost_alone_count():
    costs = np.array([1.0, 1.09, 1.2, 2.0, 2.1])
    pairs = {tuple(p) for p in np.argwhere(close(costs)).tolist()}
    assert pairs == {(0, 1), (3, 4)}  # 1.2 exceeds 1.09 by 10.1 %
    found = figures(assessed([50, 60, 10, 80, 70], [[50, 60, 10, 70, 80]] * 2, costs))
    assert found["tau_within_cost"] == pytest.approx(0.0)  # one pair agrees, one does not
    assert found["tau_all_pairs"] == pytest.approx(0.8)
    assert found["tau_macs_within_cost"] == pytest.approx(1.0)
    assert found["tau_above_macs"] == pytest.approx(-1.0)
    assert found["tau_ceiling_within_cost"] == pytest.approx(1.0)


def test_the_ceiling_is_seed_against_seed():
    found = figures(assessed([10, 20, 30, 40], [[10, 20, 30, 40], [40, 30, 20, 10]]))
    assert found["tau_ceiling_within_cost"] == pytest.approx(-1.0)
    assert found["tau_within_cost"] == pytest.approx(0.0)  # the mean over seeds: 1 and -1


def test_regret_is_what_the_best_of_the_top_three_lacks():
    inherited = [50, 40, 30, 20, 10, 60, 50, 40, 30]
    alone = [70, 75, 60, 90, 10, 80, 70, 60, 75]
    bins = [0, 0, 0, 0, 0, 1, 1, 1, 1]
    found = figures(assessed(inherited, [alone, alone], bins=bins))
    assert found["top3_regret.0"] == pytest.approx(15)  # 90, against 75 among the first three
    assert found["top3_regret.1"] == pytest.approx(0)
    assert found["top3_regret"] == pytest.approx(7.5)
    first = [90 - max(drawn) for drawn in combinations(alone[:5], 3)]
    second = [80 - max(drawn) for drawn in combinations(alone[5:], 3)]
    assert found["top3_regret_random"] == pytest.approx((np.mean(first) + np.mean(second)) / 2)
    assert found["gap.0"] == pytest.approx(30)
    assert found["gap.1"] == pytest.approx(20)
    assert found["median_gap"] == pytest.approx(20)


def test_regret_by_cost():
    alone = [70, 75, 60, 90, 10]
    found = figures(assessed([1] * 5, [alone, alone], costs=[1.0, 1.1, 1.3, 1.2, 1.4], bins=[0] * 5))
    assert found["top3_regret_macs"] == pytest.approx(0)
    found = figures(assessed([1] * 5, [alone, alone], costs=[1.4, 1.1, 1.3, 1.0, 1.2], bins=[0] * 5))
    assert found["top3_regret_macs"] == pytest.approx(20)


def test_the_best_of_three_is_always_among_three():
    some = assessed(inherited=[90.0, 80.0, 70.0], alone=[[70.0, 80.0, 90.0]], bins=[0, 0, 0])
    assert np.isnan(figures(some)["top3_regret"])


def test_intervals_hold_the_value_and_grow_with_noise():
    rng = np.random.default_rng(0)
    truth = np.linspace(40, 80, 24)
    bins = np.repeat([0, 1, 2], 8)
    costs = np.repeat([1.0, 2.0, 4.0], 8) * rng.uniform(0.97, 1.03, 24)
    seen = np.ones(24, dtype=bool)
    sure = Assessed(costs, bins, right(truth, rng), np.stack([right(truth, rng)] * 2, 1), seen)
    noisy_truth = truth + rng.normal(0, 8, 24)
    noisy = Assessed(costs, bins, right(noisy_truth, rng), sure.alone, seen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "RESAMPLES", 200)
        found = {name: with_intervals(a) for name, a in (("sure", sure), ("noisy", noisy))}
    for results in found.values():
        low, high = results["median_gap"]["interval_95"]
        assert low <= results["median_gap"]["value"] <= high

    def width(name):
        low, high = found[name]["tau_within_cost"]["interval_95"]
        return high - low

    assert width("noisy") > 1.2 * width("sure")


def test_what_training_left_out_is_told_apart():
    inherited = [50, 40, 30, 20, 80, 70, 60, 50]
    alone = [60, 50, 40, 30, 80, 70, 60, 50]
    bins = [0, 0, 0, 0, 1, 1, 1, 1]
    seen = [True, True, False, False] * 2
    found = figures(assessed(inherited, [alone, alone], bins=bins, seen=seen))
    first = [0, 1, 4, 5]
    of_seen = assessed([inherited[i] for i in first], [[alone[i] for i in first]] * 2, bins=[0, 0, 1, 1])
    assert {name: value for name, value in found.items() if not name.startswith("unseen")} == pytest.approx(
        figures(of_seen), nan_ok=True
    )
    assert found["unseen.gap.0"] == pytest.approx(10)
    assert found["unseen.gap.1"] == pytest.approx(0)
    assert found["unseen_off_curve"] == pytest.approx(-20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "RESAMPLES", 50)
        intervals = with_intervals(assessed(inherited, [alone, alone], bins=bins, seen=seen))
    low, high = intervals["unseen_off_curve"]["interval_95"]
    assert low < -20 < high


def test_what_cannot_be_had_is_none():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "RESAMPLES", 20)
        found = with_intervals(assessed([50, 40, 30], [[60, 50, 40]]))  # one training each
    assert found["tau_ceiling_within_cost"] == {"value": None, "interval_95": [None, None]}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"", lambda data: b"text" * 99])
def test_damaged_predictions_are_named(tmp_path, damage):
    path = tmp_path / "a-0.npz"
    _write(path, np.arange(100) % 3 == 0)
    assert read_right(path).sum() == 34
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"a-0\.npz must hold raw predictions, but is damaged .*Remove it"):
        read_right(path)


def test_what_was_trained_by_another_recipe_is_not_taken():
    digits, _ = load_experiment("digits", {})
    recipe = digits.training
    same = replace(digits, training=replace(recipe, threads=3, keep=5, workers=2))
    other = replace(digits, training=replace(recipe, epochs=3))
    assert recipe_id(same) == recipe_id(digits) != recipe_id(other)
    assert recipe_id(replace(digits, task=digits.task.fewer(train=100))) != recipe_id(digits)


def test_a_training_alone_is_by_the_same_recipe(tmp_path, monkeypatch):
    """Each seed another one, in a folder from which a call that is killed goes on."""
    phase, calls = sys.modules["nas.phases.assess"], []
    digits, _ = load_experiment("digits", {})
    monkeypatch.setattr(phase, "_right", lambda *_: np.ones(3, bool))
    monkeypatch.setattr(
        phase, "train", lambda alone, task, recipe, work, seed: calls.append((alone, recipe, work, seed))
    )
    one = Chosen(digits.space.smallest(), 1.0, 0, True)
    for seed in (0, 1, 1):
        phase._train_alone(phase.Shared(digits, tmp_path), (one, seed))
    (first, recipe, work, seed), (second, _, other_work, other), (third, _, same_work, same) = calls
    assert replace(recipe, threads=0) == digits.training.alone(one.architecture)
    assert recipe.epochs == digits.training.epochs
    assert (same_work, same) == (other_work, other)
    assert (work != other_work, seed != other) == (True, True)
    name = next(n for n in first.bank if n.endswith("weight") and first.bank[n].ndim > 1)
    assert not torch.equal(first.bank[name], second.bank[name])
    assert torch.equal(second.bank[name], third.bank[name])


def test_how_the_supernet_was_trained_is_no_matter_to_a_training_alone():
    digits, _ = load_experiment("digits", {})
    sandwich = replace(digits, training=replace(digits.training, subnets=Sandwich(), project=True))
    assert recipe_id(sandwich) == recipe_id(digits)


@pytest.mark.parametrize(("bins", "message"), [(0, "1 or more: got 0"), (101, "100 or fewer: got 101")])
def test_numbers_of_bins_that_are_none(bins, message):
    with pytest.raises(RunError, match=message):
        Assessment(bins=bins)


class OneLogit:
    """Of two classes."""

    metric = Metric("accuracy", "%", "maximize")

    def tallies(self, outputs, batch):
        return {"accuracy": Tally.of(100.0 * ((outputs.flatten() > 0) == batch.targets.bool()))}


class Wrong(OneLogit):
    """Counts errors, from 0 to 1."""

    metric = Metric("error", "", "minimize")

    def tallies(self, outputs, batch):
        return {"error": Tally.of(1.0 * (outputs.argmax(-1) != batch.targets))}


class Careful(OneLogit):
    """Takes for the second class what may be of it."""

    def tallies(self, outputs, batch):
        return {"accuracy": Tally.of(100.0 * ((outputs[:, 1] > outputs[:, 0] - 2) == batch.targets.bool()))}


class Unsure(OneLogit):
    def tallies(self, outputs, batch):
        return {"accuracy": Tally.of(outputs.sigmoid().flatten())}


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        (OneLogit(), torch.tensor([[2.0], [-1.0], [-3.0], [0.5]])),
        (OneLogit(), torch.tensor([2.0, -1.0, -3.0, 0.5])),
        (Wrong(), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])),
        (Careful(), torch.tensor([[1.0, 0.0], [3.0, 0.0], [3.0, 0.0], [1.0, 0.0]])),
    ],
    ids=["one logit", "a number", "errors", "a threshold"],
)
def test_the_metric_says_what_is_right(task, answer):
    batch = Batch((torch.zeros(4, 3),), torch.tensor([1, 1, 0, 0]))
    assert _right_of(batch, answer, task).tolist() == [True, False, True, False]


def test_a_metric_of_more_and_less_is_refused():
    batch = Batch((torch.zeros(4, 3),), torch.tensor([1, 1, 0, 0]))
    with pytest.raises(
        RunError, match=r"takes each example for right or wrong, 0 or 100: accuracy of Unsure"
    ):
        _right_of(batch, torch.rand(4, 1), Unsure())


def test_a_training_alone_that_diverges_stops_no_other(tmp_path):
    """And its remedy is one that can be followed: the recipe of a supernet is final."""
    found, _ = load_experiment("digits", {})
    task = replace(found.task.fewer(train=128), batch_size=64)
    recipe = replace(found.training, epochs=2, learning_rate=1e3, warmup=0.0, threads=1)
    experiment = replace(found, task=task, training=recipe)
    directory = SimpleNamespace(path=tmp_path / "digits")
    source = SimpleNamespace(path=None, name="digits", settings={"name": "mine"})
    supernet = experiment.supernet()
    run = SimpleNamespace(
        experiment=experiment, directory=directory, source=source, supernet=supernet, address=None, modules=[]
    )
    with pytest.raises(RunError) as raised:
        assess(run, Assessment(bins=1, subnets=2, seeds=1), workers=0)
    said = str(raised.value)
    assert "2 did; the others are kept. The first: The loss must" in said
    assert "--set name=mine --resume --if-changed continue --set training.explosion=inf" in said
    assert "learning_rate" not in said
