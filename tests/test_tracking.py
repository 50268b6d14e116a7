"""The study's log in MLflow: complete, without duplicates, fast, and not held up by a server."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from torch import nn

from nas.errors import TrackingError
from nas.export.mlflow_model import answer_of, load_mlflow, save_mlflow
from nas.export.onnx import export_onnx
from nas.tracking import Tracker
from nas.tracking.records import KEY_LENGTH, PARAM_LENGTH, legal_key, shortened
from nas.trial import Trial

PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Net:
    width: int


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    (tmp_path / "runs").mkdir()
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'runs' / 'mlflow.db')}"


@pytest.fixture
def start(uri: str) -> Callable[..., Tracker]:
    def start(run_id: str | None = None, **params: Any) -> Tracker:
        return Tracker.start(uri, "digits", "first", params, run_id=run_id)

    return start


def trial(number: int, accuracy: float = 90.0, search: str = "nsga2.pi4") -> Trial:
    return Trial(
        search=search,
        number=number,
        id=f"{number:012x}",
        architecture=Net(number),
        genes=(number,),
        rung=0,
        objectives={"accuracy": accuracy, "latency_ms.pi4": 1.5, "size_bytes": 1e4},
        state="complete",
        n=100,
        std_error=1.0,
        error=None,
        evaluated=True,
        weights="w",
        space="s",
    )


def failed(number: int) -> Trial:
    values = {**vars(trial(number)), "objectives": {}, "state": "failed", "error": "killed"}
    return Trial(**values)


def track(tracker: Tracker, numbers: Iterable[int]) -> None:
    for number in numbers:
        tracker.trial(trial(number, accuracy=80 + number % 7), hypervolume=number / 1000)


def steps(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    history = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, key)
    return [(metric.step, metric.value) for metric in history]


def table(tracker: Tracker) -> list[dict[str, Any]]:
    path = MlflowClient(tracker.uri).download_artifacts(tracker.run_id, "trials.json")
    content = json.loads(Path(path).read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def children(tracker: Tracker) -> list[Any]:
    client = MlflowClient(tracker.uri)
    experiment = client.get_run(tracker.run_id).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`{PARENT}` = '{tracker.run_id}'"))


class TestTrials:
    def test_are_the_steps_of_their_searches_metrics(self, start: Callable[..., Tracker]) -> None:
        tracker = start()
        for number, accuracy in enumerate([90.0, 95.0, 93.0]):
            tracker.trial(trial(number, accuracy), hypervolume=number / 10)
        tracker.trial(trial(0, 70.0, search="random.pi4"), hypervolume=None)
        tracker.finish()
        assert steps(tracker, "nsga2.pi4/accuracy") == [(0, 90), (1, 95), (2, 93)]
        assert steps(tracker, "nsga2.pi4/best_accuracy") == [(0, 90), (1, 95), (2, 95)]
        assert steps(tracker, "nsga2.pi4/hypervolume") == [(0, 0.0), (1, 0.1), (2, 0.2)]
        assert steps(tracker, "nsga2.pi4/latency_ms.pi4") == [(0, 1.5), (1, 1.5), (2, 1.5)]
        assert steps(tracker, "random.pi4/best_accuracy") == [(0, 70)]
        assert steps(tracker, "random.pi4/hypervolume") == []

    def test_failed_ones_leave_a_gap(self, start: Callable[..., Tracker]) -> None:
        tracker = start()
        tracker.trial(trial(0), 0.1)
        tracker.trial(failed(1), 0.1)
        tracker.trial(trial(2), 0.2)
        tracker.finish()
        for name in ("accuracy", "hypervolume"):
            assert [step for step, _ in steps(tracker, f"nsga2.pi4/{name}")] == [0, 2]

    def test_show_while_the_search_runs(
        self, start: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        tracker = start()
        track(tracker, range(3))
        assert len(steps(tracker, "nsga2.pi4/accuracy")) == 1  # the rest is buffered
        now += 2
        track(tracker, [3])
        assert len(steps(tracker, "nsga2.pi4/accuracy")) == 4

    def test_a_thousand_take_less_than_five_seconds(self, start: Callable[..., Tracker]) -> None:
        tracker = start()
        begin = time.perf_counter()
        track(tracker, range(1000))
        tracker.table([trial(n) for n in range(1000)])
        tracker.finish()
        assert time.perf_counter() - begin < 5
        assert [step for step, _ in steps(tracker, "nsga2.pi4/hypervolume")] == list(range(1000))


class TestResume:
    def test_goes_on_in_the_same_run(self, start: Callable[..., Tracker]) -> None:
        first = start()
        first.finish("KILLED")
        second = start(first.run_id)
        assert second.run_id == first.run_id
        client = MlflowClient(second.uri)
        assert client.get_run(second.run_id).info.status == "RUNNING"
        second.finish()
        assert client.get_run(second.run_id).info.status == "FINISHED"

    def test_fills_in_what_is_missing_and_duplicates_nothing(self, start: Callable[..., Tracker]) -> None:
        first = start()
        track(first, range(40))
        first.finish("KILLED")  # and trials 40 to 49 reached the log alone
        second = start(first.run_id)
        track(second, range(60))
        second.finish()
        for name in ("accuracy", "best_accuracy", "hypervolume", "size_bytes"):
            assert [s for s, _ in steps(second, f"nsga2.pi4/{name}")] == list(range(60))

    def test_remembers_the_best_accuracy_without_a_replay(self, start: Callable[..., Tracker]) -> None:
        first = start()
        first.trial(trial(0, 99.0), 0.1)
        first.finish()
        second = start(first.run_id)
        second.trial(trial(1, 90.0), 0.1)
        second.finish()
        assert steps(second, "nsga2.pi4/best_accuracy") == [(0, 99), (1, 99)]

    def test_appends_only_new_rows_to_the_table(self, start: Callable[..., Tracker]) -> None:
        first = start()
        first.table([trial(0), failed(1)])
        first.finish()
        second = start(first.run_id)
        second.table([trial(0), failed(1), trial(2), trial(0, search="random.pi4")])
        rows = table(second)
        assert [(r["search"], r["number"], r["state"]) for r in rows] == [
            ("nsga2.pi4", 0, "complete"),
            ("nsga2.pi4", 1, "failed"),
            ("nsga2.pi4", 2, "complete"),
            ("random.pi4", 0, "complete"),
        ]
        assert json.loads(rows[2]["architecture"]) == {"type": "Net", "width": 2}

    def test_keeps_old_parameters_and_notes_changed_ones(self, start: Callable[..., Tracker]) -> None:
        first = start(trials=100, seed=0)
        first.finish()
        second = start(first.run_id, trials=200, seed=0, parallel=8)
        data = MlflowClient(second.uri).get_run(second.run_id).data
        assert data.params == {"trials": "100", "seed": "0", "parallel": "8"}
        assert data.tags["resumed.trials"] == "200"
        assert "resumed.seed" not in data.tags

    def test_of_a_run_that_is_gone_starts_a_new_one(self, start: Callable[..., Tracker]) -> None:
        gone = start()
        MlflowClient(gone.uri).delete_run(gone.run_id)
        for run_id in (gone.run_id, "f" * 32):
            tracker = start(run_id)
            track(tracker, range(3))
            tracker.finish()
            assert tracker.run_id not in (gone.run_id, "f" * 32)
            assert len(steps(tracker, "nsga2.pi4/accuracy")) == 3


class TestChildren:
    @pytest.fixture
    def entry(self, finished_run: Path) -> dict[str, Any]:
        entry: dict[str, Any] = json.loads((finished_run / "front.json").read_text())[0]
        return entry

    def test_hold_architecture_and_numbers(
        self, start: Callable[..., Tracker], entry: dict[str, Any]
    ) -> None:
        tracker = start()
        tracker.child(entry)
        (child,) = children(tracker)
        assert child.info.status == "FINISHED"
        assert child.data.params["id"] == entry["id"]
        stage = entry["architecture"]["stages"][1]
        assert child.data.params["stages.1.width"] == str(stage["width"])
        measured = entry["objectives"]["latency_ms.onnxruntime"]["measured"]
        assert child.data.metrics["latency_ms.onnxruntime/measured"] == pytest.approx(measured)

    def test_keep_the_split_test_out(self, start: Callable[..., Tracker], entry: dict[str, Any]) -> None:
        tracker = start()
        tracker.child(entry)
        (child,) = children(tracker)
        assert not [name for name in {**child.data.metrics, **child.data.params} if "test" in name]

    def test_are_found_again(self, start: Callable[..., Tracker], entry: dict[str, Any]) -> None:
        first = start()
        first.child(entry)
        first.child(entry)
        first.finish()
        second = start(first.run_id)
        second.child(entry)
        second.child(entry | {"device": "pi4"})
        assert len(children(second)) == 2
        for child in children(second):
            history = MlflowClient(second.uri).get_metric_history(child.info.run_id, "accuracy/measured")
            assert len(history) == 1

    def test_configurations_of_a_tuning(self, start: Callable[..., Tracker]) -> None:
        """In whichever order they end, and told again by a later call."""
        tracker = start()
        settings = {"training.subnets": "nas.training.Sandwich", "training.learning_rate": 0.003}
        for number in (1, 0, 1):
            tracker.configuration(number, settings, {"score": 50.0 + number, "time": 9})
        found = {child.info.run_name: child.data for child in children(tracker)}
        assert found.keys() == {"configuration 0", "configuration 1"}
        assert found["configuration 0"].metrics == {"score": 50.0, "time": 9.0}
        assert found["configuration 1"].params["training.subnets"] == "nas.training.Sandwich"


class TestServer:
    def test_that_is_away_is_an_error_at_once(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
            begin = time.perf_counter()
            with pytest.raises(TrackingError, match=rf"{uri}.*mlflow server"):
                Tracker.start(uri, "digits", "first", {})
            assert time.perf_counter() - begin < 6

    def test_that_is_silent_is_an_error_within_seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nas.tracking.reach.ANSWER_SECONDS", 0.3)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
            begin = time.perf_counter()
            with pytest.raises(TrackingError, match=r"0\.3 s"):
                Tracker.start(uri, "digits", "first", {})
            assert time.perf_counter() - begin < 3

    def test_that_goes_away_costs_a_warning_and_no_metric(
        self,
        start: Callable[..., Tracker],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        tracker = start()
        with monkeypatch.context() as away:
            away.setattr(MlflowClient, "log_batch", _refuse)
            track(tracker, range(20))
        assert len([r for r in caplog.records if r.name.startswith("nas")]) == 1  # not one a trial
        tracker.finish()
        assert len(steps(tracker, "nsga2.pi4/accuracy")) == 20

    @pytest.mark.parametrize("uri", ["sqlite:////dev/null/mlflow.db", "sqlite:////proc/mlflow.db"])
    def test_a_database_that_cannot_be_made_is_an_error(self, uri: str) -> None:
        with pytest.raises(TrackingError, match="SQLite file that can be written"):
            Tracker.start(uri, "digits", "first", {})

    def test_a_file_that_is_no_database_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "notes.db").write_text("not a database, but long enough to be taken for one" * 9)
        with pytest.raises(TrackingError, match="not a database"):
            Tracker.start(f"sqlite:///{tmp_path}/notes.db", "digits", "first", {})

    @pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
    def test_the_plain_file_store_is_refused_with_a_remedy(self, uri: str) -> None:
        with pytest.raises(TrackingError, match=r"sqlite:///runs/mlflow\.db"):
            Tracker.start(uri, "digits", "first", {})

    def test_a_deleted_experiment_is_an_error(self, start: Callable[..., Tracker]) -> None:
        tracker = start()
        client = MlflowClient(tracker.uri)
        client.delete_experiment(client.get_run(tracker.run_id).info.experiment_id)
        with pytest.raises(TrackingError, match="experiments restore"):
            start()


def test_artifacts_lie_beside_the_database(start: Callable[..., Tracker], tmp_path: Path) -> None:
    tracker = start()
    (tmp_path / "front.png").write_bytes(b"picture")
    tracker.artifact(tmp_path / "front.png")
    (stored,) = (tmp_path / "runs" / "mlartifacts").rglob("front.png")
    assert stored.read_bytes() == b"picture"


def test_a_model_is_registered_and_loaded_by_its_alias(start: Callable[..., Tracker], tmp_path: Path) -> None:
    folders = []
    for i, width in enumerate((3, 5)):  # two exports of one id, the second of other weights
        file, folder = tmp_path / f"{i}.onnx", tmp_path / str(i) / "id" / "mlflow"
        torch.manual_seed(i)
        export_onnx(nn.Linear(width, 2), torch.rand(2, width), file)
        save_mlflow(file, torch.rand(2, width), folder)
        folders.append(folder)
    tracker = start()
    tags = [{"n": folder.parent.parent.name, "R² (val) @1|x<y>": "0.5"} for folder in folders]
    uris = [tracker.register(*pair) for pair in zip(folders, ["digits"] * 2, ["pi4"] * 2, tags, strict=True)]
    assert uris == ["models:/digits@pi4"] * 2
    client = MlflowClient(tracker.uri)
    version = client.get_model_version_by_alias("digits", "pi4")
    legal = {"n": "1", "R_ _val_ _1_x_y_": "0.5"}  # of names as of metrics
    assert (version.version, version.tags, version.run_id) == (2, legal, tracker.run_id)
    mlflow.set_tracking_uri(tracker.uri)
    model = load_mlflow(uris[1])
    x = torch.rand(4, 5)
    assert answer_of(model, x.numpy()).shape == (4, 2)
    assert model.metadata.get_input_schema().input_names() == ["x"]
    assert model.input_example["x"].shape == (1, 5)
    before = load_mlflow("models:/digits/1")
    assert answer_of(before, torch.rand(4, 3).numpy()).shape == (4, 2)
    for device in ("v100", "latest"):  # which MLflow keeps for versions
        assert tracker.register(folders[1], "digits", device, {}) == f"models:/digits@device-{device}"


def test_metrics_of_training_have_a_prefix(start: Callable[..., Tracker]) -> None:
    tracker = start()
    tracker.metrics(5, {"loss": 0.5}, prefix="supernet")
    tracker.metrics(5, {"loss": 0.5}, prefix="supernet")
    tracker.finish()
    assert steps(tracker, "supernet/loss") == [(5, 0.5)]


def test_long_parameters_are_cut_but_stay_apart(start: Callable[..., Tracker]) -> None:
    values = {"a": "x" * 9000 + "1", "b": "x" * 9000 + "2", "nested": {"deep": [1, 2]}}
    tracker = start(**values)
    params = MlflowClient(tracker.uri).get_run(tracker.run_id).data.params
    assert len(params["a"]) == PARAM_LENGTH
    assert params["a"] != params["b"]
    assert params["nested.deep"] == "[1, 2]"


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("nsga2.pi4/latency_ms.pi4", "nsga2.pi4/latency_ms.pi4"),
        ("top 5 (%)", "top 5 ___"),
        ("/a//b/../c/", "a/b/__/c"),
        ("größe", "gr__e"),
        ("..", "__"),
    ],
)
def test_names_are_made_legal(start: Callable[..., Tracker], name: str, legal: str) -> None:
    assert legal_key(name) == legal
    tracker = start()
    tracker.metrics(0, {name: 1.0})
    tracker.finish()
    assert steps(tracker, legal) == [(0, 1.0)]


def test_long_names_are_cut() -> None:
    assert len(legal_key("x" * 999)) == KEY_LENGTH
    assert shortened("short", 250) == "short"


def _refuse(*_: Any, **__: Any) -> None:
    raise MlflowException("connection refused")
