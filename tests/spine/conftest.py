"""One small run, made as a user makes it, for all tests of the whole."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SMALL = {
    "seed": 7,
    "training.epochs": 2,
    "training.threads": 1,
    "profiling.samples": 14,
    "profiling.held_out": 4,
    "profiling.rounds": 10,
    "search.workers": 0,
    "search.trials": 60,
    "search.bounds": 10,
    "search.finalists": 5,
}
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray binds to loopback alone
}


Nas = Callable[..., "Done"]


LEAST = {
    "training.epochs": 1,
    "profiling.samples": 11,
    "profiling.held_out": 3,
    "search.trials": 6,
    "search.bounds": 3,
    "search.finalists": 2,
}
"""For runs of which nothing matters but that they end well."""


def settings(**changes: object) -> list[str]:
    """``--set`` options for SMALL with changes, dots written as double underscores."""
    return _options(SMALL | {k.replace("__", "."): v for k, v in changes.items()})


def least(**changes: object) -> list[str]:
    """The same for SMALL with LEAST."""
    return _options(SMALL | LEAST | {k.replace("__", "."): v for k, v in changes.items()})


def _options(changed: dict[str, object]) -> list[str]:
    return [part for k, v in changed.items() for part in ("--set", f"{k}={v}")]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "nas.cli", *map(str, arguments)]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def nas(empty_database: Path) -> Iterator[Nas]:
    """The command line, in this process: importing torch and mlflow again takes seconds each time, as does
    making a database of MLflow's, which is a copy here."""
    from nas.cli import main
    from nas.tracking import tracker
    from nas.tracking.reach import sqlite_path

    whole = tracker.MlflowClient

    def client(tracking_uri: str) -> Any:
        if tracking_uri.startswith("sqlite:///") and not sqlite_path(tracking_uri).stat().st_size:
            shutil.copy(empty_database, sqlite_path(tracking_uri))
        return whole(tracking_uri)

    def run(*arguments: object, check: bool = True) -> Done:
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main([str(a) for a in arguments])
            except SystemExit as end:
                code = end.code
        done = Done(int(code or 0), out.getvalue(), err.getvalue())
        assert not (check and done.returncode), f"nas {arguments}: {done}"
        return done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tracker, "MlflowClient", client)
        yield run


@pytest.fixture(scope="session")
def trained(nas: Nas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs in which `digits` is trained and profiled, and nothing else is done."""
    folder = tmp_path_factory.mktemp("trained")
    nas("train", "digits", "--run-dir", folder, *settings())
    nas("profile", "digits", "--run-dir", folder)
    return folder


@pytest.fixture(scope="session")
def finished(nas: Nas, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run directory. Only for reading; `finished_copy` may be changed."""
    folder = copied(trained, tmp_path_factory.mktemp("finished") / "runs")
    done = nas("run", "digits", "--resume", "--run-dir", folder)
    (folder / "output.txt").write_text(done.stdout)
    return folder / "digits"


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    return copied(finished.parent, tmp_path / "runs") / "digits"


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns(".lock")))
