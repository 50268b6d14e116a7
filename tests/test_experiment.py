"""Experiments: what cannot work is told early, and what is given reaches where it belongs."""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training.small import made_up_task

from nas.cli import _load
from nas.devices import Profile
from nas.errors import RunError
from nas.experiment import Experiment, Source, check_settings, load_experiment, same_teacher, settings_of
from nas.phases import remembered, reopened
from nas.phases.assess import recipe_id
from nas.phases.run import Run, _changes, _identity
from nas.rundir import RunDirectory
from nas.settings import differences
from nas.space import Space, oneof
from nas.tasks import Batch, Mix, RandomAffine
from nas.training import Distillation, Nested, OneBatch, Recipe, Sandwich
from search_spaces import hierarchical


@pytest.fixture(scope="module")
def experiment():
    task = made_up_task()
    space = hierarchical.space(task, widths=((8, 16),), depths=(1, 2))
    return Experiment("small", task, space, hierarchical.build)


class Two:
    """A task with two inputs."""

    def batches(self, split):
        yield Batch((torch.zeros(4, 3), torch.zeros(4, 5)), torch.zeros(4))


def test_a_task_with_several_inputs_is_told_before_it_is_trained_on(experiment):
    one = replace(experiment, task=Two())
    with pytest.raises(RunError, match=r"must give one input to be profiled, .*: Two gives 2\. Join them"):
        one.example()
    phases = importlib.import_module("nas.phases")
    with pytest.raises(RunError, match="must give one input"):
        phases.all_phases(SimpleNamespace(experiment=one), one.devices[0])


def test_a_rule_that_does_not_fit_the_space_is_told_before_a_run_begins(experiment):
    check_settings(experiment)
    wrong = replace(experiment, training=Recipe(subnets=Nested("rato")))
    with pytest.raises(RunError, match=r"`training\.subnets\.gene` must be the name .*: got 'rato'"):
        check_settings(wrong)


def test_a_training_alone_begins_as_the_supernet_did(experiment):
    """With the weights of a checkpoint, where `start` gives such."""
    architecture = experiment.space.smallest()

    def filled(supernet):
        return supernet.with_state({n: torch.full_like(t, 0.5) for n, t in supernet.state().items()})

    started = replace(experiment, start=filled).begun(architecture, 0)
    assert all((tensor == 0.5).all() for tensor in started.state().values())
    plain = experiment.begun(architecture, 0)
    assert all(torch.equal(plain.bank[n], t) for n, t in experiment.alone(architecture, 0).bank.items())


class Part:
    """What a field is annotated with, where parts of several classes may stand."""


@dataclass(frozen=True)
class Relu(Part):
    units: int


@dataclass(frozen=True)
class Gelu(Part):
    units: int


@dataclass(frozen=True)
class Parts:
    part: Part


def test_a_training_alone_reads_what_its_space_reads(experiment):
    """Such as an export that teaches it, whose parts are of other classes."""
    space = Space(Parts(oneof(Relu(oneof(8, 16)), Gelu(8))))
    mine = replace(experiment, space=space, build=lambda a: nn.Linear(64, a.part.units), features=None)
    alone = mine.alone(Parts(Relu(8)), 0).space
    for found in (alone, pickle.loads(pickle.dumps(alone))):
        assert found.classes.keys() == space.classes.keys() == {"Parts", "Relu", "Gelu"}
        assert found.size == 1
    assert alone.fingerprint == Space(Parts(Relu(8))).fingerprint


def test_what_left_nothing_behind_was_not_begun(tmp_path):
    """Such as a training that was refused at its first step."""
    directory = RunDirectory(tmp_path)
    (directory.supernet / "checkpoints").mkdir(parents=True)
    (directory.supernet / "diverged.json").touch()
    assert not directory.started
    (directory.supernet / "checkpoints" / "step-000000001.safetensors").touch()
    assert directory.started
    assert RunDirectory(tmp_path / "other").started is False


def test_a_profile_is_held_against_device_and_space(experiment, tmp_path, monkeypatch):
    """It may have been edited since."""
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "torch.json").touch()
    met = []
    profile = SimpleNamespace(require_fit=lambda *of: met.append(of))
    monkeypatch.setattr(Profile, "load", lambda path: profile)
    device = experiment.device("torch")
    run = Run(experiment, Source("digits", {}, None, None), RunDirectory(tmp_path), None)
    assert run.profile(device) is profile
    assert met == [(device, experiment.space)]


def test_another_export_in_the_teachers_folder_is_another_setting(experiment, tmp_path):
    taught = Recipe(distillation=Distillation(external=0.5, teacher=str(tmp_path)))
    one, found = replace(experiment, training=taught), []
    for weights in (None, b"a", b"b"):
        if weights:
            (tmp_path / "model.safetensors").write_bytes(weights)
        found.append(json.dumps(settings_of(one)["training"]))
    assert len(set(found)) == 3


def test_a_teacher_is_known_by_its_weights_wherever_they_lie(tmp_path):
    one, other = f"{tmp_path}/a of weights 1", f"{tmp_path}/b of weights 1"
    assert same_teacher(one, other)
    assert not same_teacher(one, f"{tmp_path}/a of weights 2")
    assert same_teacher(one, f"{tmp_path}/a")  # gone, once it has taught
    assert not same_teacher(one, f"{tmp_path}/b")
    assert not same_teacher(one, None)
    assert not same_teacher("Net of weights 1", "OtherNet of weights 1")


def test_a_run_goes_on_once_its_teacher_has_moved(experiment, tmp_path):
    def taught_by(folder):
        recipe = Recipe(distillation=Distillation(external=0.5, teacher=str(folder)))
        return replace(experiment, training=recipe)

    there, moved = tmp_path / "there", tmp_path / "moved"
    there.mkdir()
    (there / "model.safetensors").write_bytes(b"weights")
    source = Source("", {})
    directory = RunDirectory(tmp_path / "run")
    directory.update(**_identity(taught_by(there), source))
    there.rename(moved)
    for folder in (there, moved):
        assert _changes(directory, _identity(taught_by(folder), source)) == []
    (moved / "model.safetensors").write_bytes(b"others")
    (change,) = _changes(directory, _identity(taught_by(moved), source))
    assert change.startswith("training.distillation.teacher was")


def test_a_relative_path_is_kept_as_seen_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        "training.distillation.external": "0.5",
        "training.distillation.teacher": "taught/it",
        "seed": "3",
    }
    kept = given | {"training.distillation.teacher": f"{tmp_path}/taught/it"}
    assert load_experiment("digits", given)[1].settings == kept
    texts = [f"{name}={text}" for name, text in given.items()]
    assert remembered(tmp_path, "digits", texts)[1].settings == kept


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_train_where_there_are_several(experiment, tmp_path, monkeypatch, workers):
    phase, called = importlib.import_module("nas.phases.train"), []
    for name in ("train", "train_parallel"):
        monkeypatch.setattr(phase, name, lambda *_, name=name, **__: called.append(name))
    run = SimpleNamespace(
        experiment=replace(experiment, training=Recipe(epochs=1, workers=workers)),
        directory=SimpleNamespace(weights=tmp_path / "none", supernet=tmp_path),
        untrained=experiment.supernet(),
        address=None,
        modules=[],
    )
    phase.train_supernet(run)
    assert called == [["train", "train_parallel"][workers - 1]]


# --- settings that were given before --------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    """Of which `digits` was begun with a sandwich of one random subnet."""
    directory = tmp_path / "digits"
    (directory / "supernet").mkdir(parents=True)
    (directory / "supernet" / "history.jsonl").touch()
    given = {"training.subnets": "nas.training.Sandwich", "training.subnets.random": "1", "seed": "7"}
    (directory / "experiment.json").write_text(json.dumps({"source": {"set": given}}))
    return tmp_path


def test_what_was_given_before_counts_still(runs):
    found, _ = remembered(runs, "digits", ["training.subnets.random=3"])
    assert (found.training.subnets, found.seed) == (Sandwich(random=3), 7)


def test_another_rule_does_not_get_the_settings_of_the_one_before(runs):
    found, _ = remembered(runs, "digits", ["training.subnets=nas.training.OneBatch"])
    assert (found.training.subnets, found.seed) == (OneBatch(), 7)


def test_a_recipe_that_was_tuned_is_used(runs):
    (runs / "digits-tune").mkdir()
    best = {"settings": {"training.learning_rate": 0.01, "training.subnets": "nas.training.OneBatch"}}
    (runs / "digits-tune" / "recipe.json").write_text(json.dumps(best))
    _, found, _ = _load("digits", ["training.clip=2.0"], runs, recipe=True)
    assert (found.training.learning_rate, found.training.subnets) == (0.01, OneBatch())
    assert found.training.clip == 2.0
    _, plain, _ = _load("digits", None, runs)
    assert plain.training.subnets == Sandwich(random=1)


def test_what_is_set_whole_is_not_set_inside_by_a_recipe(runs):
    (runs / "digits-tune").mkdir()
    best = {"settings": {"training.mix.label_smoothing": 0.1, "training.clip": 2.0}}
    (runs / "digits-tune" / "recipe.json").write_text(json.dumps(best))
    _, found, _ = _load("digits", ["training.mix=nas.tasks.Mix"], runs, recipe=True)
    assert (found.training.mix, found.training.clip) == (Mix(), 2.0)


def test_how_a_task_trains_is_part_of_what_an_experiment_is(experiment):
    """Of its data, the fingerprint alone; of a user's class, the number of batches at least."""
    other = replace(
        experiment, task=replace(experiment.task, batch_size=5, augment=RandomAffine(degrees=3.0))
    )
    before, now = (settings_of(e)["task"] for e in (experiment, other))
    assert {line.split(" ")[0] for line in differences(before, now)} == {"batches", "batch_size", "augment"}
    assert json.dumps(now)
    assert recipe_id(other) != recipe_id(experiment)
    faster = replace(experiment, task=replace(experiment.task, eval_batch_size=7))
    assert recipe_id(faster) == recipe_id(experiment)
    assert settings_of(replace(experiment, task=Counted()))["task"] == {
        "type": f"{__name__}.Counted",
        "fingerprint": "f",
        "batches": 7,
    }


class Counted:
    """A user's task, which is no dataclass."""

    fingerprint = "f"

    def batch_count(self, split):
        return 7


# --- files that run directories name --------------------------------------------------------------


@pytest.mark.parametrize("where", ["beside it", "in it"])
def test_what_a_run_directory_names_is_not_run_unseen(tmp_path, where):
    """A file that has changed since, or that came with the directory."""
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    file = (tmp_path if where == "beside it" else run) / "mine.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    digest = "0" * 64 if where == "beside it" else hashlib.sha256(file.read_bytes()).hexdigest()
    source = {"name": "mine", "path": str(file), "sha256": digest, "set": {}}
    (run / "experiment.json").write_text(json.dumps({"source": source}))
    with pytest.raises(RunError, match=r"has changed, and was not run|by a file outside of it"):
        reopened(run)
    assert not (tmp_path / "ran").exists()
