"""A made-up finished run for all who read run directories: 300 trials, two devices."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DEVICES = {"onnxruntime": 1.0, "pi4": 9.0}  # how much slower than the first
SEARCHES = {"nsga2.onnxruntime": 75, "random.onnxruntime": 75, "nsga2.pi4": 75, "random.pi4": 75}
SEARCH_N, SELECT_N, TEST_N = 270, 180, 360  # examples in the splits


# What may be skipped, by the reason that is given, and how often at most. All else must run where the
# packages of `dev` are installed: a skip that nobody counts is a test that nobody has.
SKIPS = {"needs Chromium": 1, "needs Linux": 3}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Says which skips are too many."""
    for reason, tests in _too_many_skips(config).items():
        terminalreporter.write_line(
            f"Skipped tests must be among those that tests/conftest.py allows (SKIPS): {reason!r} skipped "
            f"{', '.join(tests)}. Install the packages of `dev` (make setup), or add the reason there.",
            red=True,
        )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run that skipped more than it may."""
    if _too_many_skips(session.config) and session.exitstatus in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _too_many_skips(config: pytest.Config) -> dict[str, list[str]]:
    """Tests, or whole files, by the reason for which more of them were skipped than may be."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    found: dict[str, list[str]] = {}
    for report in reporter.stats.get("skipped", []) if reporter else []:
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        found.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    return {reason: tests for reason, tests in found.items() if len(tests) > SKIPS.get(reason, 0)}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small products gain nothing from two threads, and lose much where tests run side by side."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for what tests start
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of MLflow's, migrated: making one takes seconds, copying it none."""
    from nas.tracking import tracker  # which prepares for MLflow before it imports it

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracker.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, made once. Only for reading; `run_dir` is a copy to change."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    write_run(path)
    return path


@pytest.fixture
def run_dir(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the made-up run."""
    return Path(shutil.copytree(finished_run, tmp_path / "digits"))


def write_run(path: Path) -> None:
    """Writes a whole run directory into `path`."""
    rng = np.random.default_rng(0)
    (path / "supernet").mkdir(parents=True)
    (path / "devices").mkdir()
    trials = [t for search, n in SEARCHES.items() for t in _trials(search, n, rng)]
    front = [e for device in DEVICES for e in _finalists(device, trials, rng)]
    _write_lines(path / "trials.jsonl", trials)
    _write_lines(path / "supernet" / "history.jsonl", _history())
    (path / "front.json").write_text(json.dumps(front))
    (path / "experiment.json").write_text(json.dumps(_experiment()))
    for device in DEVICES:
        (path / "devices" / f"{device}.json").write_text(json.dumps(_profile(device, rng)))


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _architecture(rng: np.random.Generator, effort: float) -> dict[str, Any]:
    """`effort` in [0, 1] draws towards larger parts."""

    def pick(*options: Any) -> Any:
        return options[min(len(options) - 1, int(rng.beta(1 + 3 * effort, 2) * len(options)))]

    def block() -> dict[str, Any]:
        mixer = pick(
            {"type": "DepthwiseConv", "kernel": 3},
            {"type": "WindowAttention", "heads": 2, "window": pick(2, 4)},
            {"type": "GlobalAttention", "heads": pick(2, 4)},
        )
        return {"type": "Block", "mixer": mixer, "ffn": {"type": "MLP", "ratio": pick(1, 2, 4)}}

    stages = []
    for index in range(2):
        first = block()
        blocks = [first, *(first if rng.random() < 0.5 else block() for _ in range(pick(1, 2, 3)))]
        width = pick(16, 24, 32, 48) * (index + 1)
        stages.append({"type": "Stage", "width": width, "blocks": blocks})
    stem = {"type": "PatchStem", "patch": pick(1, 2)}
    return {"type": "HierarchicalTransformer", "stem": stem, "stages": stages, "classes": 10}


def _macs(architecture: dict[str, Any]) -> float:
    per_block = {"DepthwiseConv": 0.5, "WindowAttention": 1.0, "GlobalAttention": 1.4}
    macs: float = sum(
        stage["width"] ** 1.5 * (per_block[block["mixer"]["type"]] + 0.6 * block["ffn"]["ratio"])
        for stage in architecture["stages"]
        for block in stage["blocks"]
    )
    return macs


def _figures(architecture: dict[str, Any], device: str, rng: np.random.Generator) -> dict[str, float]:
    macs = _macs(architecture)
    accuracy = 98 - 24 * math.exp(-macs / 3_000) + rng.normal(0, 0.8)
    latency = DEVICES[device] * (0.03 + macs / 40_000) * rng.lognormal(0, 0.12)
    return {
        "accuracy": round(min(accuracy, 99.6), 3),
        f"latency_ms.{device}": round(latency, 5),
        "size_bytes": round(4_000 + macs * 21),
    }


def _trials(search: str, n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    random = search.startswith("random")
    device = search.partition(".")[2]
    trials = []
    for number in range(n):
        architecture = _architecture(rng, rng.random() if random else rng.random() ** 2)
        figures = _figures(architecture, device, rng)
        if not random:
            figures["accuracy"] = min(99.6, figures["accuracy"] + 2.5 * number / n)
        state = "failed" if number % 37 == 11 else "pruned" if number == 20 else "complete"
        complete, accuracy = state == "complete", figures["accuracy"] / 100
        error = math.sqrt(accuracy * (1 - accuracy) / SEARCH_N) * 100
        trials.append(
            {
                "search": search,
                "number": number,
                "id": f"{rng.integers(16**12):012x}",
                "architecture": architecture,
                "genes": [int(g) for g in rng.integers(0, 4, 12)],
                "rung": 0,
                "objectives": figures if complete else {},
                "state": state,
                "n": SEARCH_N if complete else None,
                "std_error": error if complete else None,
                "error": "RuntimeError: the worker was killed" if state == "failed" else None,
                "evaluated": device == "onnxruntime" or number % 5 > 0,
                "weights": "0123456789ab",
                "space": "ba9876543210",
                "schema": 1,
            }
        )
    return trials


def _finalists(device: str, trials: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    ours = [t for t in trials if t["search"] == f"nsga2.{device}" and t["state"] == "complete"]
    latency = f"latency_ms.{device}"
    ours.sort(key=lambda t: t["objectives"][latency])
    best, entries = 0.0, []
    for trial in ours:
        predicted = trial["objectives"]
        if predicted["accuracy"] <= best:
            continue
        best = predicted["accuracy"]
        entries.append(_entry(trial, device, predicted, rng))
    top = 0.0
    for entry in entries:  # by latency, so that a lower accuracy than one before is dominated
        measured = entry["objectives"]["accuracy"]["measured"]
        entry["front"], top = measured > top, max(top, measured)
    return entries


def _entry(
    trial: dict[str, Any], device: str, predicted: dict[str, float], rng: np.random.Generator
) -> dict[str, Any]:
    latency = f"latency_ms.{device}"
    select = min(99.9, predicted["accuracy"] - 0.5 + rng.normal(0, 0.8))
    test = min(99.9, predicted["accuracy"] - 0.6 + rng.normal(0, 0.6))
    error = math.sqrt(select / 100 * (1 - select / 100) / SELECT_N) * 100
    test_error = math.sqrt(test / 100 * (1 - test / 100) / TEST_N) * 100
    timed = predicted[latency] * rng.lognormal(0, 0.04)
    return {
        "id": trial["id"],
        "architecture": trial["architecture"],
        "device": device,
        "search": trial["search"],
        "weights": trial["weights"],
        "front": True,
        "drift": 1.02,
        "objectives": {
            "accuracy": {
                "predicted": predicted["accuracy"],
                "measured": round(select, 2),
                "n": SELECT_N,
                "std_error": error,
            },
            latency: {"predicted": predicted[latency], "measured": timed, "spread": timed * 0.03},
            "size_bytes": {
                "predicted": predicted["size_bytes"],
                "measured": predicted["size_bytes"] + 611,
            },
            "parameters": {"measured": round(predicted["size_bytes"] / 4)},
        },
        "test": {
            "accuracy": round(test, 2),
            "n": TEST_N,
            "std_error": test_error,
            "interval": [
                round(test - 2 * test_error, 2),
                round(min(100, test + 1.6 * test_error), 2),
            ],
        },
    }


def _history() -> list[dict[str, float]]:
    return [
        {
            "step": step,
            "core_seconds": 2.5,
            "loss": 2.3 * math.exp(-step / 500) + 0.12,
            "first_metric": 98 - 80 * math.exp(-step / 300),
            "second_metric": 93 - 78 * math.exp(-step / 420),
        }
        for step in range(0, 3000, 50)
    ]


def _profile(device: str, rng: np.random.Generator) -> dict[str, Any]:
    samples = []
    for index in range(120):
        architecture = _architecture(rng, rng.random())
        latency = DEVICES[device] * (0.03 + _macs(architecture) / 40_000) * rng.lognormal(0, 0.03)
        samples.append(
            {
                "id": f"{rng.integers(16**12):012x}",
                "architecture": architecture,
                "genes": [0] * 12,
                "latency_ms": latency,
                "spread": latency * 0.02,
                "held_out": index >= 90,
                "predicted_ms": latency * rng.lognormal(0, 0.05),
            }
        )
    return {
        "device": device,
        "runtime": "onnxruntime",
        "threads": 1,
        "batch": 1,
        "machine": {"cpu": "x86-64"},
        "samples": samples,
        "model": {"kind": "additive", "coefficients": {"stem": 0.03}},
        "quality": {
            "held_out": {"mape": 4.1, "kendall_tau": 0.93, "n": 30},
            "macs_only": {"mape": 14.2, "kendall_tau": 0.81},
            "test_retest": {"mape": 1.8, "kendall_tau": 0.963},
        },
    }


def _experiment() -> dict[str, Any]:
    objectives = [("accuracy", "%", "maximize"), ("size_bytes", "B", "minimize")]
    objectives[1:1] = [(f"latency_ms.{device}", "ms", "minimize") for device in DEVICES]
    return {
        "name": "digits",
        "seed": 7,
        "settings": {"training": {"steps": 3000, "batch": 128}, "search": {"trials": 90}},
        "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
        "machine": {"cpu": "x86-64", "cores": 2},
        "source": {"path": "experiments/digits.py", "sha256": "ab" * 32},
        "space": {"fingerprint": "ba9876543210", "size": 31_381_059_609},
        "objectives": [dict(zip(("name", "unit", "direction"), o, strict=True)) for o in objectives],
        "scales": {
            device: {
                "ideal": [-99.6, 0.03 * slower, 5_000],
                "nadir": [-70.0, 0.35 * slower, 200_000],
            }
            for device, slower in DEVICES.items()
        },
        "tracking": {"uri": "sqlite:///runs/mlflow.db", "experiment": "digits", "run_id": "0" * 32},
    }
