"""What is tuned of an experiment, and how a recipe comes back into one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from experiments import digits
from nas.errors import RunError
from nas.phases.tune import Tuning, as_it_is, recipe_settings, tunable, with_settings
from nas.tasks import Tally
from nas.training import Epoch, OneBatch, Only, Sandwich, SinglePath


@pytest.fixture(scope="module")
def experiment():
    return digits.experiment()


def test_every_setting_that_is_tuned_can_be_set(experiment):
    values = {
        "training.learning_rate": 0.0123,
        "training.weight_decay": 0.2,
        "training.subnets": "nas.training.SinglePath",
        "training.distillation.in_place": 0.5,
        "training.mix.label_smoothing": 0.05,
        "training.mix.mixup": 0.2,
        "training.mix.cutmix": 1.0,
    }
    assert set(tunable(experiment)) == set(values)
    recipe = with_settings(experiment, values).training
    assert (recipe.learning_rate, recipe.weight_decay) == (0.0123, 0.2)
    assert recipe.subnets == SinglePath()
    assert recipe.distillation.in_place == 0.5
    assert (recipe.mix.label_smoothing, recipe.mix.mixup, recipe.mix.cutmix) == (0.05, 0.2, 1.0)


def test_the_recipe_as_it_is_comes_first_where_it_is_among_them(experiment):
    space = tunable(experiment)
    settings = as_it_is(experiment, space)
    assert settings["training.learning_rate"] == experiment.training.learning_rate
    assert with_settings(experiment, settings).training == experiment.training
    for other in (Only(experiment.space.largest()), Sandwich(random=7)):
        assert (
            as_it_is(replace(experiment, training=replace(experiment.training, subnets=other)), space) is None
        )
    fast = replace(experiment, training=replace(experiment.training, learning_rate=1.0))
    assert as_it_is(fast, space) is None


def test_a_recipe_is_read_back(tmp_path):
    with pytest.raises(RunError, match="`--recipe` must find what `nas tune digits` wrote"):
        recipe_settings(tmp_path, "digits")
    (tmp_path / "digits-tune").mkdir()
    found = {"settings": {"training.learning_rate": 0.01, "training.subnets": "nas.training.OneBatch"}}
    (tmp_path / "digits-tune" / "recipe.json").write_text(json.dumps(found))
    assert recipe_settings(tmp_path, "digits") == {
        "training.learning_rate": "0.01",
        "training.subnets": "nas.training.OneBatch",
    }


@pytest.mark.parametrize(
    ("rule", "epochs", "times"),
    [
        (SinglePath(), 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (OneBatch(4), 8, [1, 2, 3, 4, 5, 6, 7, 8]),  # a batch in all, whoever gets which share of it
        (Sandwich(random=2), 2, [4, 8]),
        (Sandwich(random=2, smallest=False), 3, [3, 6, 9]),
    ],
)
def test_rules_are_compared_by_equal_work(rule, epochs, times, experiment, monkeypatch):
    module, reported, trained = sys.modules["nas.phases.tune"], [], []

    def training(supernet, task, recipe, folder, seed, on_epoch):
        trained.append(recipe.epochs)
        for epoch in range(1, recipe.epochs + 1):
            on_epoch(Epoch(epoch, epoch, 0.0, 0.0, None, 0.0, 0.0))

    monkeypatch.setattr(module, "train", training)
    monkeypatch.setattr(module, "subnet_accuracy", lambda *_: Tally(50.0, 2500.0, 1))
    one = replace(experiment, training=replace(experiment.training, subnets=rule))
    module._objective((one, 8), {}, lambda epoch, score, seconds, time: reported.append(time))
    assert trained == [epochs]
    assert reported == times


@pytest.mark.parametrize("settings", [{"samples": 0}, {"epochs": 0}])
def test_numbers_that_are_none(settings):
    with pytest.raises(RunError, match="must be 1 or more: got 0"):
        Tuning(**settings)
