"""Of a training on, the best weights are kept, also over an interruption."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training.small import RECIPE, Stop, made_up_supernet, made_up_task

from nas.errors import RunError
from nas.experiment import Experiment
from nas.phases.finetune import FINE_TUNED, SCRATCH, Finetuning, Piece, Shared, _train_on
from nas.tasks import ImageClassification, Metric, Tally
from nas.training import Diverged, Recipe, load_tensors, save_tensors
from search_spaces import hierarchical

phase = sys.modules["nas.phases.finetune"]


def tally(accuracy: float) -> Tally:
    return Tally(accuracy * 10, accuracy**2 * 10, 10)


@pytest.mark.parametrize("stop", [None, 3])
def test_the_best_weights_are_kept(stop, tmp_path, monkeypatch):
    task = made_up_task()
    supernet = made_up_supernet(task)
    architecture = supernet.space.smallest()
    experiment = Experiment("a", task, supernet.space, hierarchical.build, training=RECIPE)
    what = Finetuning(epochs=4, external=0.0)
    shared = Shared(experiment, supernet, "w", None, what, tmp_path)
    piece = Piece("a", architecture, FINE_TUNED)
    accuracies = {1: 50.0, 2: 70.0, 3: 60.0, 4: 65.0}
    seen, reported = {}, []

    def judged(alone, _architecture, _task, _split):
        epoch = len(seen) + 1
        seen[epoch] = {n: t.clone() for n, t in alone.state().items()}
        return tally(accuracies[epoch])

    def report(epoch, score, core_seconds):
        reported.append((epoch, score))
        if epoch == stop and len(reported) == stop:
            raise Stop

    monkeypatch.setattr(phase, "subnet_accuracy", judged)
    if stop:
        with pytest.raises(Stop):
            _train_on(shared, piece, report)
    _train_on(shared, piece, report)
    tensors, metadata = load_tensors(shared.weights_of(piece))
    assert float(metadata["score"]) == 70.0
    assert all(torch.equal(tensors[n], t) for n, t in seen[2].items())
    assert reported[-1] == (4, 70.0)


def test_what_gets_no_better_ends_and_from_scratch_goes_on(tmp_path, monkeypatch):
    """A plain training by the supernet's recipe may stand still in the middle of its schedule."""
    task = made_up_task()
    supernet = made_up_supernet(task)
    architecture = supernet.space.smallest()
    experiment = Experiment("a", task, supernet.space, hierarchical.build, training=replace(RECIPE, epochs=6))
    monkeypatch.setattr(phase, "subnet_accuracy", lambda *_: tally(50.0))
    for kind, epochs in ((FINE_TUNED, [1, 2, 3]), (SCRATCH, [1, 2, 3, 4, 5, 6])):
        shared = Shared(experiment, supernet, "w", None, Finetuning(6, external=0.0, patience=2), tmp_path)
        reported: list[int] = []
        _train_on(shared, Piece("a", architecture, kind), lambda epoch, *_, to=reported: to.append(epoch))
        assert reported == epochs


def test_one_that_was_stopped_before_its_last_word(tmp_path, monkeypatch):
    """All of its steps are in a checkpoint, but it was not judged."""
    task = made_up_task()
    supernet = made_up_supernet(task)
    piece = Piece("a", supernet.space.smallest(), FINE_TUNED)
    experiment = Experiment("a", task, supernet.space, hierarchical.build, training=RECIPE)
    shared = Shared(experiment, supernet, "w", None, Finetuning(3, external=0.0), tmp_path)
    judged, reported = [], []

    def judge(*_):
        judged.append(len(judged))
        if len(judged) == 3:
            raise Stop
        return tally(50.0 + len(judged))

    monkeypatch.setattr(phase, "subnet_accuracy", judge)
    with pytest.raises(Stop):
        _train_on(shared, piece, lambda *_: None)
    _train_on(shared, piece, lambda epoch, score, _: reported.append((epoch, score)))
    assert reported == [(3, 54.0)]
    assert load_tensors(shared.weights_of(piece))[1]["epoch"] == "3"


def test_other_settings_and_other_weights_have_other_files(tmp_path):
    task = made_up_task()
    supernet = made_up_supernet(task)
    piece, scratch = (Piece("a", supernet.space.smallest(), kind) for kind in (FINE_TUNED, SCRATCH))

    def files(weights, what, piece):
        return Shared(None, supernet, weights, None, what, tmp_path).weights_of(piece)

    one, longer = Finetuning(3), Finetuning(4)
    assert len({files("w", one, piece), files("v", one, piece), files("w", longer, piece)}) == 3
    assert files("w", one, scratch) == files("w", longer, scratch)


@pytest.mark.parametrize("file", ["../../victim.safetensors", "/tmp/victim.safetensors", "a/b.safetensors"])
def test_records_name_files_of_their_own_folder(tmp_path, file):
    path = tmp_path / phase.INDEX
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"weights": "w", "file": file}]))
    run = SimpleNamespace(directory=SimpleNamespace(path=tmp_path), weights="w")
    with pytest.raises(RunError, match="must name files of the folder finetuned: got"):
        phase.records(run)


@pytest.mark.parametrize(
    ("direction", "score", "better"),
    [("maximize", 7.0, True), ("maximize", 3.0, False), ("minimize", 7.0, False), ("minimize", 3.0, True)],
)
def test_better_is_what_the_metric_says(experiment, tmp_path, monkeypatch, direction, score, better):
    class Directed(ImageClassification):
        metric = Metric("accuracy", "%", direction)

    task = Directed(**vars(experiment.task))
    run = SimpleNamespace(experiment=replace(experiment, task=task), supernet=None, weights="w")
    shared = shared_of(experiment, tmp_path)
    monkeypatch.setattr(phase, "subnet_accuracy", lambda *_: tally(5.0))
    for kind in (FINE_TUNED, SCRATCH):
        piece = piece_of(experiment, kind)
        alone = experiment.alone(piece.architecture, 0)
        save_tensors(shared.weights_of(piece), alone.state(), {"score": str(score)})
        record = phase._record(run, piece, {"epoch": 1, "core_seconds": 2.0}, shared)
        assert record["deployed"] == (better and kind == FINE_TUNED)


def test_a_metric_that_is_no_number_is_told(experiment, tmp_path, monkeypatch):
    run = SimpleNamespace(experiment=experiment, supernet=None, weights="w")
    shared, piece = shared_of(experiment, tmp_path), piece_of(experiment, FINE_TUNED)
    alone = experiment.alone(piece.architecture, 0)
    save_tensors(shared.weights_of(piece), alone.state(), {"score": "5"})
    monkeypatch.setattr(phase, "subnet_accuracy", lambda *_: tally(5.0))
    monkeypatch.setattr(phase, "accuracy", lambda *_: tally(math.nan))
    with pytest.raises(RunError, match=r"must be finite once trained, but is nan on select and nan on"):
        phase._record(run, piece, {"epoch": 1, "core_seconds": 2.0}, shared)


def test_what_is_handed_out_is_what_the_front_tells_of(experiment, tmp_path):
    """A call that dies between the record of a training and the front's has its figures still to change."""
    architecture, supernet = experiment.space.smallest(), experiment.supernet()
    alone = experiment.alone(architecture, 5)
    save_tensors(tmp_path / phase.FOLDER / "a.safetensors", alone.state(), {})
    run = SimpleNamespace(
        directory=SimpleNamespace(path=tmp_path, front=tmp_path / "front.json"),
        experiment=experiment,
        supernet=supernet,
    )
    record = {"file": "a.safetensors", "deployed": True}
    assert phase.deployed(run, {}, architecture) is supernet
    assert phase.deployed(run, {"trained": {SCRATCH: record}}, architecture) is supernet
    assert (
        phase.deployed(run, {"trained": {FINE_TUNED: record | {"deployed": False}}}, architecture) is supernet
    )
    found = phase.deployed(run, {"trained": {FINE_TUNED: record}}, architecture).state()
    assert all(torch.equal(found[name], tensor) for name, tensor in alone.state().items())
    elsewhere = {"trained": {FINE_TUNED: record | {"file": "../a.safetensors"}}}
    with pytest.raises(RunError, match=r"front\.json must name files of the folder finetuned"):
        phase.deployed(run, elsewhere, architecture)


@pytest.fixture(scope="module")
def experiment():
    task = made_up_task()
    space = hierarchical.space(task, widths=((8, 16),), depths=(1, 2))
    recipe = Recipe(learning_rate=1e-2, checkpoint_seconds=0.0, epochs=3, ema=0.9)
    return Experiment("small", task, space, hierarchical.build, training=recipe)


def shared_of(experiment, folder) -> Shared:
    folder.mkdir(exist_ok=True)
    what = Finetuning(epochs=4, learning_rate=1.0, external=0.0, patience=4)
    return Shared(experiment, experiment.supernet(), "abc", None, what, folder)


def piece_of(experiment, kind: str) -> Piece:
    smallest = experiment.space.smallest()
    return Piece(experiment.space.id(smallest), smallest, kind)


def best_weights(shared, piece) -> bytes:
    return shared.weights_of(piece).read_bytes()


@pytest.mark.parametrize("kind", [FINE_TUNED, SCRATCH])
@pytest.mark.parametrize("died", ["while it judged", "before its report"])
def test_a_call_that_is_killed_loses_no_epoch(experiment, tmp_path, monkeypatch, kind, died):
    what, one = shared_of(experiment, tmp_path / "whole"), piece_of(experiment, kind)
    whole = []
    _train_on(what, one, lambda *told: whole.append(told))
    assert [epoch for epoch, *_ in whole] == list(range(1, 5 if kind == FINE_TUNED else 4))

    cut, calls, own = shared_of(experiment, tmp_path / "cut"), [0], phase.subnet_accuracy

    def dying(*arguments):
        calls[0] += 1
        if calls[0] == 2:
            raise Stop
        return own(*arguments)

    def silent(epoch, *_):
        if epoch == 2:
            raise Stop

    with monkeypatch.context() as patched:
        if died == "while it judged":
            patched.setattr(phase, "subnet_accuracy", dying)
        with pytest.raises(Stop):
            _train_on(cut, one, silent)
    rest = []
    _train_on(cut, one, lambda *told: rest.append(told))
    assert [told[:2] for told in rest] == [told[:2] for told in whole[1:]]
    assert best_weights(cut, one) == best_weights(what, one)


def test_core_seconds_of_all_calls_count(experiment, tmp_path, monkeypatch):
    what, one, clock = shared_of(experiment, tmp_path), piece_of(experiment, FINE_TUNED), [0.0]

    def tick() -> float:
        clock[0] += 10.0
        return clock[0]

    def stop(epoch, *_):
        if epoch == 2:
            raise Stop

    monkeypatch.setattr(phase, "core_seconds", tick)
    with pytest.raises(Stop):
        _train_on(what, one, stop)
    clock[0] = 0.0  # another process
    told = []
    _train_on(what, one, lambda *figures: told.append(figures))
    seconds = [figures[2] for figures in told]
    assert seconds == sorted(seconds)
    assert seconds[0] == 20.0  # two epochs of the first call


def test_points_are_chosen_as_they_were_inherited(experiment):
    """A call that dies must mean the same ones again, though one that it trained dominates another now."""

    def entry(name: str, accuracy: float, ms: float, **more: Any) -> dict:
        figures = {"accuracy": {"measured": accuracy}, "latency_ms.a": {"measured": ms}}
        figures["size_bytes"] = {"measured": ms}
        return {
            "id": name,
            "device": "a",
            "front": True,
            "objectives": figures,
            "test": {"accuracy": 1.0},
        } | more

    before = [entry("small", 50.0, 1.0), entry("large", 60.0, 2.0), entry("slow", 55.0, 3.0, front=False)]
    now = copy.deepcopy(before)
    now[0]["objectives"]["accuracy"] = {"measured": 70.0}
    now[0] |= {"test": {"accuracy": 2.0}, "trained": {FINE_TUNED: {}}}
    now[0]["inherited"] = {"select": {"measured": 50.0}, "test": {"accuracy": 1.0}}
    now[1]["front"] = False
    kept = copy.deepcopy(now)
    found = phase.as_inherited(experiment, now)
    assert now == kept
    assert [{k: e[k] for k in before[0]} for e in found] == before


def test_from_scratch_is_the_recipe_of_the_supernet(experiment, tmp_path):
    """Its average of weights too."""
    averaged, one = shared_of(experiment, tmp_path / "a"), piece_of(experiment, SCRATCH)
    plain = shared_of(replace(experiment, training=replace(experiment.training, ema=0.0)), tmp_path / "b")
    for what in (averaged, plain):
        _train_on(what, one, lambda *_: None)
    assert best_weights(averaged, one) != best_weights(plain, one)


def test_what_is_not_on_record_is_not_thrown_away(experiment, tmp_path, monkeypatch):
    """A call that dies while it evaluates has all epochs in its checkpoints."""
    architecture = experiment.space.smallest()
    supernet = experiment.supernet()
    run = SimpleNamespace(
        directory=SimpleNamespace(path=tmp_path),
        experiment=experiment,
        supernet=supernet,
        weights="w",
        address=None,
        modules=[],
    )
    entry = {"id": experiment.space.id(architecture), "architecture": experiment.space.to_json(architecture)}
    entry["weights"] = "w"
    trained, own = [], phase.train

    def inline(objective, shared, items, *, on_end, **_):
        for item in items:
            told = []
            objective(shared, item, lambda *figures, to=told: to.append(figures))
            on_end(item, dict(zip(("epoch", "score", "core_seconds"), told[-1], strict=True)))

    def counted(*arguments, **named):
        own(*arguments, on_step=trained.append, **named)

    def dies(*_):
        raise Stop

    monkeypatch.setattr(phase, "several", inline)
    monkeypatch.setattr(phase, "train", counted)
    marked = []
    monkeypatch.setattr(phase, "_mark", lambda _, known: marked.append(set(known)))
    monkeypatch.setattr(phase, "_print", lambda *_: None)
    what = Finetuning(epochs=2, external=0.0)
    with monkeypatch.context() as patched:
        patched.setattr(phase, "accuracy", dies)
        with pytest.raises(Stop):
            phase.finetune(run, [entry], what, 1)
    steps = len(trained)
    (record,) = phase.finetune(run, [entry], what, 1)
    assert len(trained) == steps
    assert record["epochs"] == 2
    assert marked[0] == {(entry["id"], FINE_TUNED)}  # as soon as it is on record
    assert len(marked) == 2
    assert {p.name for p in (tmp_path / phase.FOLDER).iterdir()} == {record["file"]}


def test_what_ended_well_is_told_where_another_diverged(experiment, tmp_path, monkeypatch):
    run = SimpleNamespace(
        directory=SimpleNamespace(path=tmp_path),
        experiment=experiment,
        supernet=experiment.supernet(),
        weights="w",
        address=None,
        modules=[],
    )

    def fails(*_, **__):
        raise RunError("Training must not fail, but did: b")

    told = []
    monkeypatch.setattr(phase, "several", fails)
    monkeypatch.setattr(phase, "_mark", lambda *_: told.append("the front"))
    monkeypatch.setattr(phase, "_print", lambda *_: told.append("the table"))
    space, smallest = experiment.space, experiment.space.smallest()
    entry = {"id": space.id(smallest), "architecture": space.to_json(smallest), "weights": "w"}
    with pytest.raises(RunError, match="but did: b"):
        phase.finetune(run, [entry], Finetuning(external=0.0), 1)
    assert told == ["the front", "the table"]


@pytest.mark.parametrize(
    ("kind", "remedy"), [(FINE_TUNED, "Lower --learning-rate; or, where"), (SCRATCH, r"\. Where")]
)
def test_the_remedy_for_one_that_diverges_can_be_followed(kind, remedy, experiment, tmp_path, monkeypatch):
    def diverges(*_, **__):
        error = Diverged("The loss must stay finite, but is nan. Lower training.learning_rate.")
        error.fact = "The loss must stay finite, but is nan."
        raise error

    monkeypatch.setattr(phase, "train", diverges)
    with pytest.raises(RunError) as raised:
        _train_on(shared_of(experiment, tmp_path), piece_of(experiment, kind), print)
    assert re.search(f"{kind}: The loss must stay finite, but is nan.*{remedy}", str(raised.value))
    assert "training.learning_rate" not in str(raised.value)
    assert "--set training.explosion=inf" in str(raised.value)


def test_it_is_taught_by_the_largest_at_a_share_of_the_rate(experiment, tmp_path, monkeypatch):
    recipes, teacher = [], torch.nn.Identity()
    distillation = replace(experiment.training.distillation, temperature=3.0)
    hot = replace(experiment, training=replace(experiment.training, distillation=distillation))
    monkeypatch.setattr(phase, "train", lambda alone, task, recipe, *_, **__: recipes.append(recipe))
    what = Finetuning(epochs=4, learning_rate=0.25, external=0.3)
    one = Shared(hot, hot.supernet(), "w", teacher, what, tmp_path)
    for kind in (FINE_TUNED, SCRATCH):
        _train_on(one, piece_of(hot, kind), lambda *_: None)
    tuned, scratch = recipes
    assert (tuned.epochs, tuned.learning_rate) == (4, 0.25 * hot.training.learning_rate)
    assert tuned.distillation.teacher is teacher
    assert (tuned.distillation.external, tuned.distillation.temperature) == (0.3, 3.0)
    assert (scratch.epochs, scratch.learning_rate) == (hot.training.epochs, hot.training.learning_rate)
    assert scratch.distillation.teacher is None


def test_the_teacher_is_the_largest_that_was_trained():
    task = made_up_task()
    supernet = made_up_supernet(task)
    recipe = replace(RECIPE, withheld=(("ratio", (2,)), ("width", (16,))))
    experiment = Experiment("a", task, supernet.space, hierarchical.build, training=recipe)
    teacher = phase._teacher(SimpleNamespace(experiment=experiment, supernet=supernet), Finetuning())
    largest = recipe.trained(supernet.space).largest()
    assert sum(p.numel() for p in teacher.parameters()) == supernet.parameters_of(largest)


def test_a_machine_that_does_not_see_the_run_directory(tmp_path):
    task = made_up_task()
    supernet = made_up_supernet(task)
    experiment = Experiment("a", task, supernet.space, hierarchical.build, training=RECIPE)
    shared = Shared(experiment, supernet, "w", None, Finetuning(3, external=0.0), tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"must be one that all machines see, but one lacks .*elsewhere"):
        _train_on(shared, Piece("a", supernet.space.smallest(), FINE_TUNED), lambda *_: None)
