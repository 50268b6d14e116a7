"""Run directories read from outside: by objective, search and device, whole or not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nas.errors import RunError
from nas.objectives import Objective
from nas.reading import (
    RunView,
    hypervolumes,
    nondominated_trials,
    read_run,
    roles,
    staircase,
    title,
)
from nas.rundir import RunDirectory

ACCURACY = Objective("accuracy", "%", "maximize")
LATENCY = Objective("latency_ms.pi4", "ms", "minimize")


def test_reads_every_file(finished_run: Path) -> None:
    view = read_run(finished_run)
    assert len(view.trials) == 300
    assert view.device_names == ("onnxruntime", "pi4")
    assert view.searches_of("pi4") == ("nsga2.pi4", "random.pi4")
    assert [o.name for o in view.objectives_of("pi4")] == [
        "accuracy",
        "latency_ms.pi4",
        "size_bytes",
    ]
    assert view.history[-1]["step"] == 2950
    assert view.training_core_seconds == 150


def test_takes_what_there_is(tmp_path: Path) -> None:
    view = read_run(tmp_path)
    assert (view.trials, view.front, view.devices, view.history) == ([], [], {}, [])
    assert view.objectives == ()
    assert view.device_names == ()
    assert roles(view.objectives, "pi4") is None
    assert view.training_core_seconds is None


def test_compute_of_a_training_that_did_not_tell_it_all(run_dir: Path) -> None:
    history = run_dir / "supernet" / "history.jsonl"
    first, *rest = map(json.loads, history.read_text().splitlines())
    del first["core_seconds"]  # of a version before this one
    history.write_text("".join(json.dumps(record) + "\n" for record in (first, *rest)))
    assert read_run(run_dir).training_core_seconds is None


def test_objectives_of_devices_that_were_not_used_yet_stay_out(run_dir: Path) -> None:
    path = run_dir / "experiment.json"
    experiment = json.loads(path.read_text())
    experiment["objectives"].append({"name": "latency_ms.tpu", "unit": "ms", "direction": "minimize"})
    path.write_text(json.dumps(experiment))
    assert len(read_run(run_dir).objectives_of("pi4")) == 3


def test_leaves_out_lines_that_are_being_written(run_dir: Path) -> None:
    for name in ("trials.jsonl", "supernet/history.jsonl"):
        with (run_dir / name).open("a") as file:
            file.write('{"step": 300')
    view = read_run(run_dir)
    assert len(view.trials) == 300
    assert view.history[-1]["step"] == 2950


@pytest.mark.parametrize("name", ["front.json", "experiment.json", "supernet/history.jsonl"])
def test_names_the_file_that_is_damaged(run_dir: Path, name: str) -> None:
    (run_dir / name).write_text("{]\n")
    with pytest.raises(RunError, match=name):
        read_run(run_dir)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("devices/pi4.json", "[1]\n", r"pi4\.json must be JSON, but it holds \[1\]"),
        ("supernet/history.jsonl", "3\n", r"history\.jsonl must hold a JSON object a line, but it holds 3"),
    ],
)
def test_names_the_file_that_holds_something_else(run_dir: Path, name: str, text: str, message: str) -> None:
    (run_dir / name).write_text(text)
    with pytest.raises(RunError, match=message):
        read_run(run_dir)


OBJECTIVE = {"name": "accuracy", "unit": "%", "direction": "maximize"}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "it is None"),
        ("x", "it is 'x'"),
        ({"source": "x"}, "`source` is 'x'"),
        ({"source": {"set": 3}}, "`source.set` is 3"),
        ({"source": {"set": {"size": 3}}}, "`source.set` gives size the value 3, which is no text"),
        ({"source": {"name": None}}, "`source.name` is None"),
        ({"settings": {"training": {"distillation": "x"}}}, "`settings.training.distillation` is 'x'"),
        ({"tracking": {"uri": 1}}, "`tracking.uri` is 1"),
        ({"objectives": [OBJECTIVE, {"name": "ms", "direction": "minimize"}]}, "no name, unit and direction"),
        ({"objectives": [OBJECTIVE | {"unit": 1}]}, "no name, unit and direction"),
        ({"objectives": [OBJECTIVE | {"direction": "up"}]}, "`direction` of accuracy is 'up'"),
        ({"scales": {"pi4": {"ideal": [1, "2"], "nadir": [1, 2]}}}, "`scales` of pi4 are"),
        ({"scales": {"pi4": {"ideal": [1, 2]}}}, "`scales` of pi4 are"),
    ],
)
def test_a_description_that_is_damaged_is_named(run_dir: Path, description, message: str) -> None:
    (run_dir / "experiment.json").write_text(json.dumps(description))
    for read in (read_run, lambda path: RunDirectory(path).read()):
        with pytest.raises(
            RunError, match=rf"experiment\.json must hold what `nas run` writes, but .*{message}"
        ):
            read(run_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": [[]]}, r"its `id` is \[\[\]\]"),
        ({"number": "x"}, "its `number` is 'x'"),
        ({"architecture": 1}, "its `architecture` is 1"),
        ({"objectives": {"accuracy": "x"}}, "its `accuracy` is 'x'"),
        ({"objectives": None}, "its `objectives` is None"),
    ],
)
def test_a_trial_that_is_damaged_is_named(run_dir: Path, change, message: str) -> None:
    log = run_dir / "trials.jsonl"
    first, *rest = log.read_text().splitlines()
    log.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]) + "\n")
    with pytest.raises(RunError, match=rf"trials\.jsonl:1 must be a trial of this run, but {message}"):
        read_run(run_dir)


def test_one_value_of_a_whole_split_needs_no_error(run_dir: Path) -> None:
    path = run_dir / "front.json"
    front = json.loads(path.read_text())
    for entry in front:
        entry["objectives"]["accuracy"] |= {"n": 1, "std_error": None}
        entry["test"] |= {"n": 1, "std_error": None, "interval": None}
    path.write_text(json.dumps(front))
    assert read_run(run_dir).front == front
    front[0]["objectives"]["accuracy"]["n"] = 2
    path.write_text(json.dumps(front))
    with pytest.raises(RunError, match="`interval` of"):
        read_run(run_dir)


def changed(front, **values):
    return [front[0] | values, *front[1:]]


def having(value, figure, entry, start="accuracy"):
    """The objectives of an entry, of which one has another figure."""
    (name,) = (name for name in entry["objectives"] if name.startswith(start))
    return entry["objectives"] | {name: entry["objectives"][name] | {figure: value}}


def without(figure, entry, start="accuracy"):
    """The objectives of an entry, of which one lacks a figure."""
    (name,) = (name for name in entry["objectives"] if name.startswith(start))
    kept = {k: v for k, v in entry["objectives"][name].items() if k != figure}
    return entry["objectives"] | {name: kept}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda front: {"a": 1}, "it is no list"),
        (lambda front: [[1], *front], r"an entry is \[1\]"),
        (lambda front: changed(front, id="../x"), "is '../x' and not 12 hex digits"),
        (lambda front: changed(front, objectives={}), "`objectives` of .* is {}"),
        (lambda front: changed(front, drift=[]), r"`drift` of .* is \[\]"),
        (lambda front: changed(front, drift=0), "`drift` of .* is 0 and not above 0"),
        (lambda front: changed(front, test=front[0]["test"] | {"accuracy": []}), r"`accuracy` of .* is \[\]"),
        (lambda front: changed(front, test=front[0]["test"] | {"n": math.inf}), "`n` of .* is inf"),
        (lambda front: changed(front, test=front[0]["test"] | {"n": -1}), "`n` of .* is -1 and not above 0"),
        (
            lambda front: changed(front, objectives=having(math.nan, "measured", front[0])),
            "`accuracy` of .* 'measured': nan",
        ),
        (
            lambda front: changed(front, objectives=having(-1.0, "measured", front[0], "latency_ms")),
            "`measured of latency` of .* is -1.0 and not above 0",
        ),
        (
            lambda front: changed(front, objectives={"accuracy": {"predicted": 3}}),
            "`accuracy` .* not meas",
        ),
        (lambda front: changed(front, objectives={"accuracy": {"measured": "x"}}), "`accuracy` of .* is {"),
        (lambda front: changed(front, search=None), "`search` of .* is None"),
        (lambda front: changed(front, test=None), "`test` of .* is None"),
        (lambda front: changed(front, drift="a"), "`drift` of .* is 'a'"),
        (lambda front: changed(front, architecture=[]), r"`architecture` of .* is \[\]"),
        (lambda front: changed(front, drift=None), "`drift` of .* is missing"),
        (
            lambda front: changed(front, test=front[0]["test"] | {"interval": [1.0]}),
            r"`interval` of .* is \[1",
        ),
        (lambda front: changed(front, test=front[0]["test"] | {"n": None}), "`n` of .* is missing"),
        (lambda front: changed(front, test={"n": 3, "interval": [1, 2]}), "`test` of .* has none of its obj"),
        (
            lambda front: changed(front, objectives=without("std_error", front[0])),
            "`std_error of acc.* is miss",
        ),
        (lambda front: changed(front, objectives=without("n", front[0])), "`n of accuracy` of .* is missing"),
        (
            lambda front: changed(front, objectives=without("spread", front[0], "latency")),
            "`spread of latency` of .* is missing",
        ),
        (lambda front: changed(front, device="other"), "`measured of latency` of .* is missing"),
        (
            lambda front: changed(front, test=front[0]["test"] | {"interval": [None, None]}),
            r"`interval` of .* is \[None",
        ),
        (lambda front: changed(front, trained={"fine-tuned": 3}), "`trained` of .* is {"),
        (lambda front: changed(front, trained={"fine-tuned": {"deployed": True}}), "`trained` of .* is {"),
        (
            lambda front: changed(front, trained={"fine-tuned": {"epochs": 1, "settings": {"a": "x"}}}),
            "`trained` of .* is {",
        ),
    ],
    ids=range(29),
)
def test_a_front_that_is_none_is_told(run_dir: Path, damage, message: str) -> None:
    path = run_dir / "front.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(RunError, match=message):
        read_run(run_dir)


def test_what_is_nested_too_deeply_is_told(run_dir: Path) -> None:
    for name in ("front.json", "trials.jsonl", "experiment.json"):
        (run_dir / name).write_text("[" * 200_000 + "\n")
        with pytest.raises(RunError, match=name):
            read_run(run_dir)


def test_a_trial_that_lacks_what_is_looked_at_is_told(run_dir: Path) -> None:
    (run_dir / "trials.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(RunError, match=r"trials\.jsonl:1 must be a trial of this run, but it has no `id`"):
        read_run(run_dir)


def test_a_file_is_no_run_directory(run_dir: Path) -> None:
    with pytest.raises(RunError, match=r"must be a run directory, but has no experiment\.json"):
        RunDirectory(run_dir / "front.json").read()


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nas run"):
        read_run(tmp_path / "nowhere")


def test_device_names_may_hold_dots(tmp_path: Path) -> None:
    view = RunView(tmp_path, devices={"pi4": {}, "lab.pi4": {}})
    assert view.device_of("nsga2.lab.pi4") == "lab.pi4"
    assert view.device_of("nsga2.pi4") == "pi4"
    assert view.device_of("random.other.box") == "other.box"


def test_random_search_comes_last(tmp_path: Path) -> None:
    names = ("random.pi4", "nsga2.pi4", "nsga2.other")
    view = RunView(tmp_path, devices={"pi4": {}}, trials=[{"search": name} for name in names])
    assert view.searches_of("pi4") == ("nsga2.pi4", "random.pi4")


def test_hypervolume_grows_and_random_search_is_behind(finished_run: Path) -> None:
    view = read_run(finished_run)
    curves = {s: hypervolumes(view, s) or [] for s in view.searches_of("onnxruntime")}
    for search, curve in curves.items():
        numbers, volumes = zip(*curve, strict=True)
        assert list(numbers) == [t["number"] + 1 for t in view.complete(search)]
        assert list(volumes) == sorted(volumes)
        assert 0 < volumes[-1] < 1.01**3
    assert curves["nsga2.onnxruntime"][-1][1] > curves["random.onnxruntime"][-1][1]


def test_hypervolume_needs_the_scale(run_dir: Path) -> None:
    experiment = json.loads((run_dir / "experiment.json").read_text())
    (run_dir / "experiment.json").write_text(json.dumps(experiment | {"scales": {}}))
    assert hypervolumes(read_run(run_dir), "nsga2.pi4") is None


def test_objectives_are_guessed_until_they_are_written(run_dir: Path) -> None:
    (run_dir / "experiment.json").unlink()
    size = Objective("size_bytes", "B", "minimize")
    assert set(read_run(run_dir).objectives_of("pi4")) == {ACCURACY, LATENCY, size}


def test_nondominated_trials_respects_directions() -> None:
    trials = [
        {"objectives": {"accuracy": accuracy, "latency_ms.pi4": latency}}
        for accuracy, latency in [(90, 1.0), (95, 2.0), (94, 3.0), (85, 0.5)]
    ]
    kept = nondominated_trials([*trials, {"objectives": {}}], (ACCURACY, LATENCY))
    assert kept == [trials[0], trials[1], trials[3]]


def test_staircase_keeps_the_best_within_each_cost() -> None:
    points = [(3.0, 94.0), (1.0, 90.0), (2.0, 95.0), (0.5, 85.0), (4.0, 96.0)]
    assert staircase(points, LATENCY, ACCURACY) == [(0.5, 85), (1.0, 90), (2.0, 95), (4.0, 96)]
    flipped = staircase([(y, x) for x, y in points], ACCURACY, LATENCY)
    assert flipped == [(96, 4.0), (95, 2.0), (90, 1.0), (85, 0.5)]


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (LATENCY, "latency (ms)"),
        (ACCURACY, "accuracy (%)"),
        (Objective("size_bytes", "B", "minimize"), "size (B)"),
        (Objective("peak_memory_bytes.pi4", "B", "minimize"), "peak memory (B)"),
        (Objective("parameters", "", "minimize"), "parameters"),
    ],
)
def test_titles_have_units(objective: Objective, text: str) -> None:
    assert title(objective) == text
