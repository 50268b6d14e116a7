"""The phases of a run, each resumable: train, profile, search, verify, export."""

from __future__ import annotations

import shlex
from pathlib import Path

from nas.console import console
from nas.devices import Device
from nas.experiment import Experiment
from nas.phases.assess import Assessment, assess
from nas.phases.export import choose_entry, entries_where, entry_of, export_entry
from nas.phases.finetune import Finetuning, as_inherited, finetune, with_trained
from nas.phases.profile import profile_device
from nas.phases.run import (
    IfChanged,
    Run,
    objectives_of,
    open_run,
    python_source,
    remembered,
    reopened,
)
from nas.phases.search import search_front
from nas.phases.train import train_supernet
from nas.phases.tune import SUFFIX, Tuning, recipe_settings, tune_recipe
from nas.phases.verify import Entry, print_front, verify_front
from nas.report import render_front_png, render_report

__all__ = [
    "SUFFIX",
    "Assessment",
    "Finetuning",
    "IfChanged",
    "Run",
    "Tuning",
    "all_phases",
    "as_inherited",
    "assess",
    "choose_entry",
    "entries_where",
    "entry_of",
    "export_entry",
    "finetune",
    "finish_device",
    "objectives_of",
    "open_run",
    "profile_device",
    "python_source",
    "recipe_settings",
    "remembered",
    "reopened",
    "report",
    "run_experiment",
    "search_front",
    "train_supernet",
    "tune_recipe",
]


def all_phases(run: Run, device: Device) -> list[Entry]:
    """The main job: train, profile, search, verify, report."""
    run.experiment.example()  # a task that cannot be searched is told before it is trained on
    train_supernet(run)
    profile_device(run, device, needed=True)
    search_front(run, device)
    return finish_device(run, device)


def finish_device(run: Run, device: Device) -> list[Entry]:
    """Verifies a device's front, tracks it, writes the report and prints the table."""
    verify_front(run, device)
    entries = with_trained(run, device.name)
    for entry in entries:
        if entry["front"]:
            run.tracker.child(entry)
    report = render_report(run.directory.path)
    picture = render_front_png(run.directory.path, device.name)
    for path in (report, picture, run.directory.front, run.directory.device(device.name)):
        run.tracker.artifact(path)
    print_front(run, device, entries)
    console.print(f"Report:    {report}")
    console.print(f"Dashboard: nas dashboard {shlex.quote(str(run.directory.path))}")
    console.print(f"MLflow:    mlflow ui --backend-store-uri {shlex.quote(_short(run.tracker.uri))}")
    return entries


def report(run: Run) -> None:
    """Writes report.html anew, and tells MLflow."""
    path = render_report(run.directory.path)
    for written in (path, run.directory.front):
        run.tracker.artifact(written)
    console.print(f"Report:    {path}")


def _short(uri: str) -> str:
    """A database below the working directory by its relative path."""
    return uri.replace(f"sqlite:///{Path.cwd()}/", "sqlite:///")


def run_experiment(
    experiment: Experiment, run_dir: Path | str = "runs", *, resume: bool = False
) -> list[Entry]:
    """`nas run` from Python: trains, profiles, searches and verifies; returns the entries of front.json.

    Example:
        >>> front = [e for e in nas.run(experiment) if e["front"]]
    """
    source = python_source(experiment)
    with open_run(experiment, source, run_dir, resume=resume, begins=True) as run:
        return all_phases(run, experiment.device(None))
