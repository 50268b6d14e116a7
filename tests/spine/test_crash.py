"""A search that is killed, again and again, ends as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from spine.conftest import ENVIRONMENT, command, copied

SEARCH = "nsga2.onnxruntime"
TRIALS = 90
SETTINGS = ["--set", f"search.trials={TRIALS}", "--set", "search.baseline=false", "--if-changed", "continue"]


def told(folder: Path) -> list[tuple]:
    """(number, id, objectives, state) of all finished trials, in the order of the log."""
    text = (folder / "digits" / "trials.jsonl").read_text()
    trials = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [(t["search"], t["number"], t["id"], t["objectives"], t["state"]) for t in trials]


def lines(folder: Path) -> int:
    path = folder / "digits" / "trials.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def arguments(folder: Path, workers: int) -> list[str]:
    return [
        *("search", "digits", "--resume", "--run-dir", str(folder)),
        *("--set", f"search.workers={workers}"),
        *SETTINGS,
    ]


@pytest.fixture(scope="module")
def serial(nas, trained, tmp_path_factory) -> list[tuple]:
    """The search of a driver that nobody disturbs, without Ray."""
    folder = copied(trained, tmp_path_factory.mktemp("serial") / "runs")
    nas(*arguments(folder, workers=0))
    return told(folder)


class Drivers:
    """Searches without Ray that start at once (drivers.py)."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("drivers.py"))],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("w"),
            text=True,
        )

    def ask(self, **request: object) -> int | None:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, folder: Path, dies_in: int | None = None) -> Forked:
        return Forked(self, self.ask(nas=arguments(folder, workers=0), dies_in=dies_in))


@dataclass
class Forked:
    """As much of `subprocess.Popen` as is needed."""

    drivers: Drivers
    id: int
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.drivers.ask(poll=self.id)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.id, signal.SIGKILL)


@pytest.fixture
def drivers(tmp_path):
    found = Drivers(tmp_path / "errors.txt")
    yield found
    found.process.stdin.close()
    found.process.wait()


def killed(driver: subprocess.Popen | Forked, when: Callable[[], bool]) -> None:
    """Kills the driver `when` it is time to, or waits for it to have been."""
    deadline = time.monotonic() + 120
    while not when() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    driver.kill()
    while driver.poll() is None:
        time.sleep(0.005)
    assert driver.returncode == -signal.SIGKILL


def test_ten_kills_change_nothing(nas, trained, serial, drivers, tmp_path):
    folder = copied(trained, tmp_path / "runs")
    run = folder / "digits"
    rng = np.random.default_rng(7)
    thresholds = np.sort(rng.choice(np.arange(1, len(serial) - 5), 10, replace=False)).tolist()
    half_written = thresholds.pop(4)
    for i, threshold in enumerate(thresholds):
        if threshold > half_written > lines(folder):
            killed(drivers.start(folder, half_written - lines(folder)), when=lambda: False)
            assert not (run / "trials.jsonl").read_bytes().endswith(b"\n")
        driver = on_ray(folder) if i % 4 == 3 else drivers.start(folder)
        killed(driver, when=lambda threshold=threshold: lines(folder) >= threshold)
        mlflow_run = json.loads((run / "experiment.json").read_text())["tracking"]["run_id"]
    nas(*arguments(folder, workers=0))
    assert told(folder) == serial, drivers.errors.read_text()
    stored = json.loads((run / "experiment.json").read_text())["tracking"]
    assert stored["run_id"] == mlflow_run
    check_mlflow(stored)


def on_ray(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command(*arguments(folder, workers=2)), env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )


def check_mlflow(stored: dict) -> None:
    """One parent run that was gone on with, each step in it once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=stored["uri"])
    run = client.get_run(stored["run_id"])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, f"{SEARCH}/accuracy")
    assert [m.step for m in history] == list(range(TRIALS))


def test_two_workers_give_the_trials_of_the_serial_run(nas, trained, serial, tmp_path):
    folder = copied(trained, tmp_path / "runs")
    done = subprocess.run(
        command(*arguments(folder, workers=2)), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert told(folder) == serial


def test_training_goes_on_after_a_kill(nas, trained, tmp_path):
    """Weights after kill -9 and --resume equal those of the training that nobody disturbed."""
    from spine.conftest import settings

    from nas.files import file_hash

    folder = tmp_path / "runs"
    small = settings(training__checkpoint_seconds=0)
    driver = subprocess.Popen(
        command("train", "digits", "--run-dir", folder, *small), env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    history = folder / "digits" / "supernet" / "history.jsonl"
    deadline = time.monotonic() + 120
    while not (history.exists() and history.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    weights = folder / "digits" / "supernet" / "model.safetensors"
    assert not weights.exists()
    nas("train", "digits", "--resume", "--run-dir", folder)
    assert file_hash(weights) == file_hash(trained / "digits" / "supernet" / "model.safetensors")
