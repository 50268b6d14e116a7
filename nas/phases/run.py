"""A run that is open for work: its experiment, its directory, its tracker."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from nas.cluster import require_cluster
from nas.devices import Device, Profile
from nas.errors import RunError
from nas.evaluation import Evaluator, LatencyPredictor
from nas.experiment import (
    TRAINS_WITH,
    Experiment,
    Source,
    check_settings,
    load_experiment,
    same_teacher,
    seen_from_anywhere,
    settings_of,
)
from nas.files import file_hash
from nas.objectives import Objective
from nas.rundir import RunDirectory
from nas.settings import differences, parse_assignments, replaced
from nas.supernet import Supernet
from nas.tracking import Status, Tracker
from nas.tracking.reach import check_reachable
from nas.training import ASIDE, load_tensors

# What a run may be continued with though it was begun otherwise: none of it touches a result.
VOLATILE = (
    *("tracking", "search.workers", "search.retries", "training.checkpoint_seconds", "training.keep"),
    "task.eval_batch_size",
)
PACKAGES = ("torch", "numpy", "pymoo", "optuna", "ray", "mlflow", "onnx", "onnxruntime")

OTHER_SPACE, OTHER_DATA = "the space is another", "the data are others"
INSTALLED = ("__main__", "nas", "search_spaces", "experiments", "dashboards")

IfChanged = Literal["refuse", "new", "continue"]


@dataclass
class Run:
    """What the phases work on."""

    experiment: Experiment
    source: Source
    directory: RunDirectory
    tracker: Tracker
    resume: bool = False
    address: str | None = None

    @cached_property
    def weights(self) -> str:
        """Hash of the trained weights. Raises RunError before there are any."""
        _require_weights(self.directory, self.source)
        return file_hash(self.directory.weights)

    @cached_property
    def untrained(self) -> Supernet:
        """The supernet that training begins with, whose bank it takes; made once, since finding out what a
        space asks for is a good part of the time of a small run."""
        return self.experiment.supernet()

    @cached_property
    def supernet(self) -> Supernet:
        """The trained supernet."""
        assert self.weights
        tensors, _ = load_tensors(self.directory.weights)
        trained = self.untrained.with_state(tensors)
        del self.untrained  # or there were two banks
        return trained

    def profile(self, device: Device) -> Profile:
        """The profile of a device. Raises RunError before there is one."""
        path = self.directory.device(device.name)
        if not path.exists():
            raise RunError(
                f"{self.directory.path} must hold a profile of `{device.name}`, but has none. "
                f"`nas profile {self.source.name} --device {device.name}` makes it."
            )
        found = Profile.load(path)
        found.require_fit(device, self.experiment.space)
        return found

    def evaluator(self, device: Device) -> Evaluator:
        """What a search for `device` runs per candidate."""
        experiment = self.experiment
        model = self.profile(device).model
        latency = LatencyPredictor(device.name, model, experiment.costs())
        return Evaluator(self.supernet, experiment.task, latency, experiment.measures)

    @property
    def modules(self) -> list[ModuleType]:
        """Modules that Ray's workers cannot import: the experiment's file and those that lie beside it."""
        if not self.source.path:
            return []
        folder = Path(self.source.path).parent
        return [m for m in list(sys.modules.values()) if _lies_in(folder, m)]


@contextmanager
def open_run(
    experiment: Experiment,
    source: Source,
    folder: Path | str,
    *,
    resume: bool,
    begins: bool = False,
    needs_weights: bool = False,
    if_changed: IfChanged = "refuse",
    address: str | None = None,
    path: Path | None = None,
    on_error: Status = "FAILED",
) -> Iterator[Run]:
    """Opens `folder`/NAME for the length of the body; all that can be refused is refused here.

    Args:
        path: the run directory itself, where that is known.
        on_error: what MLflow is told of the run when the body raises.
        resume: continue what is there.
        begins: whether the phase begins a run, so that one with work in it is refused without `resume`.
        needs_weights: whether the phase is for naught without a trained supernet.
        if_changed: what to do where settings, space, data or code differ from those it was begun with.

    Raises:
        RunError: the directory is in use, holds other work, or was begun otherwise.
        TrackingError: MLflow does not answer.
    """
    check_settings(experiment)
    folder = Path(folder)
    uri = experiment.tracking or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
    if address is not None:
        require_cluster(address)
    now = _identity(experiment, source)
    directory = RunDirectory(path or _choose(folder, experiment.name, now, if_changed))
    if needs_weights:
        _require_weights(directory, source)
    check_reachable(uri)
    with directory.lock():
        if begins and directory.started and not resume:
            raise RunError(
                f"A run must not overwrite another: {directory.path} holds one. Add --resume to continue "
                f"it, or choose another --run-dir."
            )
        _require_same(directory, now, if_changed, movable=path is None)
        stored = directory.read() if directory.exists else {}
        run_id = stored.get("tracking", {}).get("run_id")
        same_place = stored.get("tracking", {}).get("uri") == uri
        tracker = Tracker.start(
            uri, experiment.name, directory.path.name, now["settings"], run_id if same_place else None
        )
        tracking = {"uri": uri, "experiment": experiment.name, "run_id": tracker.run_id}
        if not stored or _changes(directory, now):
            directory.update(**_description(experiment, now))
            directory.copy_source(source.file)
        directory.update(tracking=tracking)
        try:
            yield Run(experiment, source, directory, tracker, resume, address)
        except BaseException:
            tracker.finish(on_error)
            raise
        tracker.finish("FINISHED")


def reopened(
    path: Path | str, assignments: Sequence[str] = (), if_changed: IfChanged = "refuse"
) -> tuple[Experiment, Source]:
    """The experiment of an existing run directory, as it was set then.

    Raises:
        RunError: the file that makes it has changed, or lies in the run directory, which others may have
            written; nothing of it is run then.
    """
    stored = RunDirectory(path).read()
    source = stored.get("source", {})
    if not source.get("name"):
        raise RunError(
            f"{path} must have been made by a file with a function `experiment()`, which gives the builder "
            f"again, but was made without. Put the experiment into such a file and run that."
        )
    if source["path"]:
        file = Path(source["path"]).resolve()
        if Path(path).resolve() in file.parents:
            raise RunError(f"{path} must be made by a file outside of it, which alone is run: got {file}.")
        changed = file.is_file() and Source.of_file(file, {}).sha256 != source.get("sha256")
        if changed and if_changed == "refuse":
            raise RunError(
                f"{path} must be continued as it was begun, but {file} has changed, and was not run. Undo "
                f"that, or add --if-changed continue (you know why)."
            )
    settings = dict(source["set"]) | parse_assignments(assignments)
    return load_experiment(source["path"] or source["name"], settings)


def remembered(folder: Path | str, name: str, assignments: Sequence[str]) -> tuple[Experiment, Source]:
    """The experiment `name`; a run of it in `folder` lends the settings that are not given anew."""
    given = parse_assignments(assignments)
    made_by = {k: v for k, v in given.items() if "." not in k}
    experiment, source = load_experiment(name, made_by)
    directory = RunDirectory(Path(folder) / experiment.name)
    stored = directory.read().get("source", {}).get("set", {}) if directory.started else {}
    kept = {k: v for k, v in stored.items() if not any(k.startswith(f"{path}.") for path in given)}
    wanted = kept | given
    inside = {k: v for k, v in wanted.items() if "." in k}
    if wanted.keys() - inside.keys() == made_by.keys():  # need not be made again, which may take a while
        experiment = check_settings(replaced(experiment, inside))
        inside = seen_from_anywhere(experiment, inside)
        return experiment, replace(source, settings={**source.settings, **inside})
    return load_experiment(name, wanted)


def _lies_in(folder: Path, module: ModuleType) -> bool:
    """Whether a module was loaded from `folder` or below, and is not installed."""
    package = module.__name__.partition(".")[0]
    if package in INSTALLED or not getattr(module, "__file__", None):
        return False
    path = Path(str(module.__file__))
    return folder in path.parents and "site-packages" not in path.parts


def _require_weights(directory: RunDirectory, source: Source) -> None:
    if not directory.weights.exists():
        raise RunError(
            f"{directory.path} must hold a trained supernet, but has none. `nas train {source.name}` "
            f"trains it."
        )


def without_guard(run: Run) -> str:
    """The command by which trainings of a run no longer stop for a loss that rises."""
    command = [
        "nas",
        "train",
        run.source.path or run.source.name,
        "--run-dir",
        str(run.directory.path.parent),
    ]
    named = ["--set", f"name={name}"] if (name := run.source.settings.get("name")) else []
    what = ["--resume", "--if-changed", "continue", "--set", "training.explosion=inf"]
    return shlex.join([*command, *named, *what])


def objectives_of(stored: dict[str, Any]) -> list[Objective]:
    """The objectives in experiment.json."""
    return [Objective(**o) for o in stored.get("objectives", [])]


def _identity(experiment: Experiment, source: Source) -> dict[str, Any]:
    return {
        "settings": settings_of(experiment),
        "source": {
            "name": source.name,
            "path": source.path,
            "sha256": source.sha256,
            "set": dict(source.settings),
        },
        "space": {"fingerprint": experiment.space.fingerprint, "size": str(experiment.space.size)},
        "data": experiment.task.fingerprint,
    }


def _choose(folder: Path, name: str, now: dict[str, Any], if_changed: IfChanged) -> Path:
    """`folder`/NAME; with "new", the first of NAME, NAME-2, … that is free or was begun in the same way."""
    path, number = folder / name, 1
    while if_changed == "new" and RunDirectory(path).exists and _changes(RunDirectory(path), now):
        number += 1
        path = folder / f"{name}-{number}"
    return path


def _require_same(directory: RunDirectory, now: dict[str, Any], if_changed: IfChanged, movable: bool) -> None:
    """`movable`: whether another directory may be begun instead."""
    if not movable and if_changed == "new":
        raise RunError(
            f"`--if-changed` must be refuse or continue for a command about {directory.path} itself: got new."
        )
    changes = _changes(directory, now) if directory.exists else []
    final = [c for c in changes if _is_final(c, directory)] if directory.started else []
    if final and if_changed == "continue":
        remedy = "Add --if-changed new, which begins another directory." if movable else "Undo that."
        raise RunError(
            f"{directory.path} must be continued with its own space and data, and with the recipe of its "
            f"supernet, but {'; '.join(final[:5])}. {remedy}"
        )
    if changes and if_changed == "refuse" and directory.started:
        new = "--if-changed new (a new directory) or " if movable else ""
        raise RunError(
            f"{directory.path} must be continued as it was begun, but {'; '.join(changes[:5])}. Undo that, "
            f"or add {new}--if-changed continue (you know why)."
        )


def _is_final(change: str, directory: RunDirectory) -> bool:
    """Whether a run cannot go on in spite of it: that of a recipe counts once the weights are there."""
    setting = change.partition(" ")[0]
    if directory.weights.exists():
        if setting.startswith(("training.", "quantization.")):
            return setting.removeprefix("training.") not in ASIDE
        if setting.startswith(tuple(f"task.{name}" for name in TRAINS_WITH)):
            return True
    return change in (OTHER_SPACE, OTHER_DATA)


def _changes(directory: RunDirectory, now: dict[str, Any]) -> list[str]:
    """In which ways the run in `directory` was begun otherwise."""
    stored = directory.read()
    changes = []
    if stored.get("source", {}).get("sha256") != now["source"]["sha256"]:
        changes.append("the experiment's file has changed")
    if stored.get("space") != now["space"]:
        changes.append(OTHER_SPACE)
    if stored.get("data") != now["data"]:
        changes.append(OTHER_DATA)
    settings = stored.get("settings", {}), now["settings"]
    hidden: tuple[str, ...] = (*VOLATILE, "task.fingerprint", "space")
    if same_teacher(*(s.get("training", {}).get("distillation", {}).get("teacher") for s in settings)):
        hidden += ("training.distillation.teacher",)
    changes += [c for c in differences(*settings) if not c.split(" ")[0].startswith(hidden)]
    return changes


def _description(experiment: Experiment, now: dict[str, Any]) -> dict[str, Any]:
    """What experiment.json says of how a run was begun."""
    metric = experiment.task.metric
    objectives = [Objective(metric.name, metric.unit, metric.direction)]
    objectives += [Objective(f"latency_ms.{d.name}", "ms", "minimize") for d in experiment.devices]
    objectives += [m.objective for m in experiment.measures]
    return now | {
        "name": experiment.name,
        "seed": experiment.seed,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "machine": _machine(),
        "objectives": [vars(o) for o in objectives],
    }


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def python_source(experiment: Experiment) -> Source:
    """The file that made an experiment in Python, if its function `experiment()` can make it again."""
    module = sys.modules.get(getattr(experiment.build, "__module__", ""))
    file = getattr(module, "__file__", None)
    if not file or not callable(getattr(module, "experiment", None)):
        return Source("", {}, None, None)
    return Source.of_file(Path(file), {})
