"""What is tuned of an experiment, and how a recipe comes back into one."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from training.small import RECIPE, made_up_supernet, made_up_task

from experiments import digits
from nas.errors import RunError
from nas.experiment import Experiment
from nas.phases.tune import Tuning, as_it_is, recipe_settings, tunable, with_settings
from nas.space import Space, oneof
from nas.tasks import Batch, Metric, Tally
from nas.training import Only, Sandwich, SinglePath
from search_spaces import hierarchical


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
    found["set"] = {"data": "mine.npz", "training.learning_rate": "0.5", "training.subnets.random": "1"}
    (tmp_path / "digits-tune" / "recipe.json").write_text(json.dumps(found))
    assert recipe_settings(tmp_path, "digits") == {
        "data": "mine.npz",  # or it would train on other data than the recipe was found on
        "training.learning_rate": "0.01",
        "training.subnets": "nas.training.OneBatch",  # as it was tried: with its own numbers
    }


class OfWholeClasses:
    """A user's task, whose metric compares classes."""

    classes, image_shape = 4, (1, 8, 8)
    metric = Metric("accuracy", "%", "maximize")
    size = 7

    def batches(self, split):
        yield Batch((torch.zeros(self.size, 1, 8, 8),), torch.arange(self.size) % self.classes)

    def loss(self, outputs, batch):
        return torch.nn.functional.cross_entropy(outputs, batch.targets)

    def tallies(self, outputs, batch):
        return {"accuracy": Tally.of(100.0 * (outputs.argmax(-1) == batch.targets))}


class OfOneLogit(OfWholeClasses):
    classes = 2

    def loss(self, outputs, batch):
        found = outputs.squeeze(-1)
        return torch.nn.functional.binary_cross_entropy_with_logits(found, batch.targets.float())


@pytest.mark.parametrize(("task", "size"), [(OfWholeClasses(), 7), (OfWholeClasses(), 4), (OfOneLogit(), 7)])
def test_tasks_of_whole_classes_are_not_mixed(task, size, experiment, monkeypatch):
    """With as many images as classes they compare one with the other, and say nothing."""
    monkeypatch.setattr(task, "size", size, raising=False)
    assert not any("mix" in name for name in tunable(replace(experiment, task=task)))
    assert any("mix" in name for name in tunable(experiment))


@pytest.mark.parametrize(
    ("rule", "epochs"),
    [
        ("nas.training.SinglePath", 8),
        ("nas.training.OneBatch", 4),
        ("nas.training.Sandwich", 2),
        ("nas.training.Progressive", 1),
    ],
)
def test_rules_are_compared_by_equal_time(rule, epochs, experiment, monkeypatch):
    """All of them report at the same times, so that ASHA holds like against like."""
    module, reported, trained = sys.modules["nas.phases.tune"], [], []
    steps = experiment.task.batch_count("train")

    def training(supernet, task, recipe, folder, seed, on_step):
        trained.append((recipe.epochs, recipe.ema))
        for step in range(1, recipe.epochs * steps + 1):
            now[0] = step
            on_step(step)

    def report(epoch, score, seconds, time):
        reported.append(time)
        share = now[0] / (epochs * steps)
        assert time / 8 == pytest.approx(share, abs=1 / (epochs * steps))

    now = [0]
    monkeypatch.setattr(module, "train", training)
    monkeypatch.setattr(module, "subnet_accuracy", lambda *_: Tally(50.0, 2500.0, 1))
    one = replace(experiment, training=replace(experiment.training, ema=0.999))
    costs = {"nas.training.SinglePath": 1.0, "nas.training.OneBatch": 1.9, "nas.training.Sandwich": 3.6}
    costs["nas.training.Progressive"] = 30.0  # an epoch, all the same
    module._objective((one, 8, costs), {"training.subnets": rule}, report)
    assert trained == [(epochs, 0.0)]  # an average would lag behind in a training so short
    assert reported == [1, 3, 8]  # what it is between them decides nothing, and takes long


def test_a_step_that_ends_several_times_tells_all_of_them(experiment, monkeypatch):
    """Or Optuna's storage, which counts reports, would take a later time for an earlier one."""
    module, reported = sys.modules["nas.phases.tune"], []
    monkeypatch.setattr(module, "train", lambda *_, on_step, **__: on_step(1))
    monkeypatch.setattr(module, "subnet_accuracy", lambda *_: Tally(50.0, 2500.0, 1))
    few = replace(experiment, training=replace(experiment.training, accumulate=10_000))  # steps are epochs
    costs = {"nas.training.Progressive": 30.0}
    settings = {"training.subnets": "nas.training.Progressive"}
    module._objective((few, 8, costs), settings, lambda *_, time: reported.append(time))
    assert reported == [1, 3, 8]


def test_core_seconds_belong_to_the_configuration(tmp_path):
    module = sys.modules["nas.phases.tune"]
    a, b = {"x": 1.5, "rule": "A"}, {"rule": "B", "x": 1.5}
    module._Seconds(tmp_path / "s.json").add(b, 2.0)
    module._Seconds(tmp_path / "s.json").add(a, 1.0)
    module._Seconds(tmp_path / "s.json").add({"rule": "B", "x": 1.5}, 0.5)
    found = module._Seconds(tmp_path / "s.json")
    assert (found.of(a), found.of(b), found.of({"x": 3.0})) == (1.0, 2.5, 0.0)


def test_what_was_tried_otherwise_is_not_compared(tmp_path, experiment):
    module = sys.modules["nas.phases.tune"]
    module._require_same(experiment, Tuning(epochs=2), tmp_path)
    (tmp_path / "costs.json").touch()  # and then it was killed
    module._require_same(experiment, Tuning(epochs=2), tmp_path)
    assert (tmp_path / "costs.json").exists()
    module._require_same(experiment, Tuning(epochs=9), tmp_path)
    assert not (tmp_path / "costs.json").exists()
    (tmp_path / "optuna.db").touch()
    module._require_same(experiment, Tuning(samples=30, epochs=9), tmp_path)  # more of them
    with pytest.raises(RunError, match=r"tried alike, but .*epochs.*9.*2.*Tune as before, or in another"):
        module._require_same(experiment, Tuning(epochs=2), tmp_path)
    fewer = replace(experiment, task=experiment.task.fewer(train=100))
    with pytest.raises(RunError, match=r"tried alike, but .*data"):
        module._require_same(fewer, Tuning(epochs=9), tmp_path)
    for other in (
        replace(experiment, training=replace(experiment.training, clip=2.0)),
        replace(experiment, seed=5),
        replace(experiment, space=experiment.space.without("ratio", (1,))),
    ):
        with pytest.raises(RunError, match=r"tried alike, but .*(clip|seed|space)"):
            module._require_same(other, Tuning(epochs=9), tmp_path)
    aside = replace(experiment.training, checkpoint_seconds=3.0, workers=2, ema=0.9)  # not so in trials
    module._require_same(replace(experiment, training=aside), Tuning(epochs=9), tmp_path)


def test_rules_that_the_recipe_has_no_use_for_are_not_tried(experiment):
    """Projection needs a largest subnet in each step."""
    projected = replace(experiment.training, subnets=Sandwich(), project=True)
    rules = tunable(replace(experiment, training=projected))["training.subnets"].choices
    assert rules == ("nas.training.Sandwich", "nas.training.Progressive")


@dataclass(frozen=True)
class Units:
    units: int


def test_rules_that_the_space_has_no_use_for_are_not_tried(experiment):
    """It has nothing that would widen."""
    other = replace(experiment, space=Space(Units(oneof(8, 16))))
    assert "nas.training.Progressive" in tunable(experiment)["training.subnets"].choices
    assert "nas.training.Progressive" not in tunable(other)["training.subnets"].choices


@pytest.mark.parametrize("settings", [{"samples": 0}, {"epochs": 0}])
def test_numbers_that_are_none(settings):
    with pytest.raises(RunError, match="must be 1 or more: got 0"):
        Tuning(**settings)


def test_classes_that_are_several_at_once_are_not_mixed(experiment, monkeypatch):
    kind = type(experiment.task)
    several = lambda *_, **__: iter([Batch((torch.rand(2, 1, 8, 8),), torch.ones(2, 10))])  # noqa: E731
    monkeypatch.setattr(kind, "batches", several)
    assert not [name for name in tunable(experiment) if ".mix." in name]


def test_recipes_are_judged_by_subnets_that_are_trained(experiment, monkeypatch):
    judged = []
    module = sys.modules["nas.phases.tune"]
    monkeypatch.setattr(module, "train", lambda *_, on_step, **__: on_step(many))
    monkeypatch.setattr(module, "subnet_accuracy", lambda _, a, *__: judged.append(a) or Tally(1.0, 1.0, 1))
    many = experiment.task.batch_count("train")
    short = replace(experiment, training=replace(experiment.training, withheld=(("ratio", (2,)),)))
    settings = {"training.subnets": "nas.training.SinglePath"}
    module._objective((short, 1, {"nas.training.SinglePath": 1.0}), settings, lambda *_, **__: None)
    assert len(judged) == module.PANEL + 2
    assert all(a in short.training.trained(short.space) for a in judged)


def test_one_that_diverges_says_what_and_not_what_to_do(experiment):
    """Its checkpoints and what it tells of them are gone."""
    wild = replace(experiment.training, learning_rate=1e3, warmup=0.0, explosion=1.5)
    few = replace(experiment, task=experiment.task.fewer(train=64), training=wild)
    settings = {"training.subnets": "nas.training.SinglePath"}
    with pytest.raises(RunError) as raised:
        sys.modules["nas.phases.tune"]._objective(
            (few, 9, {settings["training.subnets"]: 1.0}), settings, lambda *_, **__: None
        )
    assert re.fullmatch(r"The loss must .* at step \d+ of architecture [0-9a-f]{12}\.", str(raised.value))


def test_a_metric_that_is_no_number_is_a_failure(experiment, monkeypatch):
    module = sys.modules["nas.phases.tune"]
    monkeypatch.setattr(module, "subnet_accuracy", lambda *_: SimpleNamespace(mean=math.nan))
    settings = {"training.subnets": "nas.training.SinglePath"}
    few = replace(experiment, task=experiment.task.fewer(train=64))
    with pytest.raises(RunError, match=r"The accuracy of subnets must be finite: got \[nan"):
        module._objective((few, 1, {"nas.training.SinglePath": 1.0}), settings, print)


def test_what_rules_cost_is_measured_once(tmp_path, monkeypatch):
    module, task = sys.modules["nas.phases.tune"], made_up_task()
    supernet = made_up_supernet(task)
    experiment = Experiment("a", task, supernet.space, hierarchical.build, training=RECIPE)
    run = SimpleNamespace(
        directory=SimpleNamespace(path=tmp_path), experiment=experiment, address=None, modules=[]
    )
    monkeypatch.setattr(module, "each", lambda of, shared, items, **_: [(i, of(shared, i)) for i in items])
    rules = ["nas.training.SinglePath", "nas.training.Sandwich"]
    costs = module._costs(run, rules)
    assert costs["nas.training.SinglePath"] == 1.0
    assert 2.0 < costs["nas.training.Sandwich"] < 6.0  # four subnets on the same images
    monkeypatch.setattr(module, "each", None)
    assert module._costs(run, rules) == costs
