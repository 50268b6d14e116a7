"""`Experiment`: the parts of one run, and where experiments come from."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from nas.annotations import require_types
from nas.devices import Device, OnnxRuntime, TorchEager
from nas.devices.costs import count
from nas.errors import NasError, RunError
from nas.evaluation import SIZE_BYTES, Measure
from nas.files import file_hash
from nas.objectives import Objective
from nas.quantize import CALIBRATED, DYNAMIC, AtBits, BitsOf, Quantization, bits_by_path
from nas.searchers import NSGA2
from nas.settings import describe, replaced
from nas.skeleton import Build, LayoutsOf
from nas.space import Space
from nas.supernet import Supernet
from nas.tasks import Task
from nas.training import Recipe, architectures_of


@dataclass(frozen=True)
class Profiling:
    """How a device is profiled.

    Attributes:
        samples: subnets that are timed, `held_out` of them to judge the latency model by.
        rounds: times that each is run, in two interleaved passes.
    """

    samples: int = 48
    held_out: int = 14
    rounds: int = 200


@dataclass(frozen=True)
class Search:
    """How the Pareto front is searched.

    Attributes:
        searcher: makes one: ``searcher(space, objectives, seed=…)``.
        trials: candidates that are evaluated.
        parallel: candidates in flight; part of the result, unlike `workers`.
        workers: Ray workers; 0 evaluates in the driver.
        retries: how often the evaluation of a lost worker is tried again.
        bounds: random architectures that fix the scale of the hypervolume beforehand.
        baseline: whether random search runs beside, with as many trials.
        finalists: most architectures that are verified.
    """

    searcher: Any = NSGA2
    trials: int = 1000
    parallel: int = 4
    workers: int = 2
    retries: int = 2
    bounds: int = 100
    baseline: bool = True
    finalists: int = 24


@dataclass(frozen=True)
class Experiment:
    """All that a run needs; a file in `experiments/` holds a function that returns one.

    Attributes:
        name: of the run directory.
        build: makes the module of an architecture.
        features: operation counts per row of genes, (n, genes) to (n, features), for the latency model;
            default: each module is built and counted whole, which is slower.
        devices: what can be profiled and searched for; the first is the default.
        measures: objectives beside accuracy and latency.
        layouts, bits: see `Supernet`, for builders of other people.
        quantization: how activations of 8 bits are rounded, in training and in what is deployed.
        start: gives a new supernet other weights before it is trained, such as those of a checkpoint:
            ``lambda supernet: supernet.with_weights(state_dict, architecture)``.
        tracking: MLflow's URI; default: SQLite beside the run directories.
    """

    name: str
    task: Task
    space: Space
    build: Build
    features: Any = None
    devices: tuple[Device, ...] = (
        Device("onnxruntime", OnnxRuntime()),
        Device("torch", TorchEager()),
    )
    training: Recipe = field(default_factory=Recipe)
    profiling: Profiling = field(default_factory=Profiling)
    search: Search = field(default_factory=Search)
    measures: tuple[Measure, ...] = (SIZE_BYTES,)
    layouts: LayoutsOf | None = None
    bits: BitsOf = bits_by_path
    quantization: Quantization = field(default_factory=Quantization)
    start: Callable[[Supernet], Supernet] | None = None
    tracking: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.training.trained(self.space)

    def supernet(self) -> Supernet:
        """A new supernet, its weights initialised from the seed, then as `start` has them."""
        new = self._supernet(self.space, self.seed)
        return self.start(new) if self.start else new

    def alone(self, architecture: Any, seed: int) -> Supernet:
        """A supernet of one architecture, newly initialised: a plain model to be trained, at its bits."""
        return self._supernet(Space(architecture, classes=self.space.classes), seed)

    def begun(self, architecture: Any, seed: int) -> Supernet:
        """`alone`, with the weights that `start` gives a supernet."""
        new = self.alone(architecture, seed)
        if self.start is None:
            return new
        return new.with_weights(self.supernet().weights(architecture, quantized=False), architecture)

    def at_bits(self) -> AtBits:
        """The builder, whose modules know their bits."""
        return AtBits(self.build, self.bits, self.quantization)

    def _supernet(self, space: Space, seed: int) -> Supernet:
        return Supernet(
            self.build,
            space,
            layouts=self.layouts,
            bits=self.bits,
            quantization=self.quantization,
            seed=seed,
        )

    def example(self, batch: int = 2) -> torch.Tensor:
        """Inputs of the task's shape, to trace and time modules with.

        Raises:
            RunError: the task gives several; modules are timed, searched and exported with one.
        """
        inputs, *others = next(iter(self.task.batches("search"))).inputs
        if others:
            raise RunError(
                f"A task must give one input to be profiled, searched, assessed and exported: "
                f"{type(self.task).__name__} gives {1 + len(others)}. Join them into one tensor, which the "
                f"builder's module takes apart."
            )
        return inputs[:1].expand(batch, *inputs.shape[1:]).contiguous()

    def costs(self) -> Any:
        """`features`, or the counts of whole modules."""
        return self.features or WholeModel(self.space, self.at_bits(), self.example(1))

    def device(self, name: str | None) -> Device:
        """The device of that name, the first by default. Raises RunError for an unknown one."""
        known = {device.name: device for device in self.devices}
        if name is None:
            return self.devices[0]
        if name not in known:
            raise RunError(
                f"`--device` must name a device of the experiment: got {name!r}. It has {', '.join(known)}."
            )
        return known[name]


class WholeModel:
    """Operation counts of whole modules, row by row: right for any builder, some 100 rows a second."""

    def __init__(self, space: Space, build: Build, example: torch.Tensor) -> None:
        self.space, self.build, self.example = space, build, example
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """(n, genes) to (n, features)."""
        return np.stack([self._row(tuple(map(int, row))) for row in np.atleast_2d(genes)])

    def _row(self, genes: tuple[int, ...]) -> np.ndarray:
        if genes not in self._known:
            with torch.device("meta"):
                module = self.build(self.space.decode(genes))
            self._known[genes] = count(module, self.example.to("meta"))
        return self._known[genes]


# --- where experiments come from ----------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where an experiment was loaded from, so that a run can be continued from the same code."""

    name: str
    settings: Mapping[str, str]
    path: str | None = None  # of a file that is no module of ours
    sha256: str | None = None
    file: Path | None = None

    @classmethod
    def of_file(cls, file: Path, settings: Mapping[str, str], name: str | None = None) -> Source:
        """A user's file, or, by `name`, one that comes along."""
        path = None if name else str(file.resolve())
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        return cls(name or str(path), dict(settings), path, sha256, file)


def load_experiment(name: str, assignments: Mapping[str, str]) -> tuple[Experiment, Source]:
    """The experiment in a file, or of that name in `experiments/`, with settings changed.

    A setting is a parameter of the file's function `experiment` (``data=mine.npz``) or a field of what
    it returns (``training.epochs=3``).

    Raises:
        RunError: no such file or name, no function in it, or no such setting.
    """
    module = _load_module(name)
    file = Path(module.__file__ or "")
    function = getattr(module, "experiment", None)
    if not callable(function):
        raise RunError(f"{module.__file__} must define a function `experiment()`, but does not.")
    parameters = inspect.signature(function).parameters
    assignments = {k: _absolute(v) if k in parameters else v for k, v in assignments.items()}
    with _errors_of(file):
        experiment = function(**{k: v for k, v in assignments.items() if k in parameters})
    if not isinstance(experiment, Experiment):
        raise RunError(f"`experiment()` in {module.__file__} must return an Experiment: got {experiment!r}.")
    experiment = replaced(experiment, inside := {k: v for k, v in assignments.items() if k not in parameters})
    known = None if name.endswith(".py") else name
    assignments |= seen_from_anywhere(experiment, inside)
    return check_settings(experiment), Source.of_file(file, assignments, known)


def seen_from_anywhere(experiment: Experiment, assignments: Mapping[str, str]) -> dict[str, str]:
    """`assignments`, of which `experiment` was made, with the paths that it made absolute."""

    def seen(path: str, text: str) -> str:
        value = attrgetter(path)(experiment)
        return value if isinstance(value, str) and value == str(Path(text).absolute()) else text

    return {path: seen(path, text) for path, text in assignments.items()}


def _absolute(text: str) -> str:
    """A path to a file or folder as seen from anywhere; other texts as they are."""
    return str(Path(text).resolve()) if Path(text).exists() else text


@contextmanager
def _errors_of(file: Path) -> Iterator[None]:
    """Errors of a user's file, as one message that names the line."""
    try:
        yield
    except NasError:
        raise
    except SyntaxError as error:
        raise RunError(f"{file} must be Python, but line {error.lineno} is not: {error.msg}.") from error
    except Exception as error:
        places = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
        line = f" in line {places[-1]}" if places else ""
        raise RunError(
            f"{file} must make an experiment, but{line}: {type(error).__name__}: {error}"
        ) from error


def check_settings(experiment: Experiment) -> Experiment:
    """Raises RunError for settings that cannot work, before any work is spent."""
    search, profiling = experiment.search, experiment.profiling
    require_types(search, "search.")
    require_types(profiling, "profiling.")
    least = {
        "profiling.samples - profiling.held_out": (profiling.samples - profiling.held_out, 8),
        "profiling.held_out": (profiling.held_out, 3),
        "profiling.rounds": (profiling.rounds, 3),
        "search.trials": (search.trials, 1),
        "search.parallel": (search.parallel, 1),
        "search.workers": (search.workers, 0),
        "search.retries": (search.retries, 0),
        "search.bounds": (search.bounds, 2),
        "search.finalists": (search.finalists, 1),
        "seed": (experiment.seed, 0),
    }
    for name, (value, low) in least.items():
        if value < low:
            raise RunError(f"`{name}` must be {low} or more: got {value}. Change it with --set.")
    if not experiment.devices:
        raise RunError("`devices` must hold a device or more, but is empty.")
    how = experiment.quantization
    others = [d for d in experiment.devices if how.activations == DYNAMIC and d.batch != how.images]
    if others:
        raise RunError(
            f"`quantization.images` must be the batch size of the devices where ranges are {DYNAMIC}, since "
            f"an input's answer depends on those beside it: got {how.images}, and {others[0].name} gets "
            f"{others[0].batch}. Set quantization.images={others[0].batch}, or quantization.activations="
            f"{CALIBRATED}."
        )
    if not re.fullmatch(r"\w[\w.-]*", experiment.name):
        raise RunError(f"`name` must be fit for a directory, such as digits-2: got {experiment.name!r}.")
    if experiment.tracking is not None and not isinstance(experiment.tracking, str):
        raise RunError(f"`tracking` must be MLflow's URI: got {experiment.tracking!r}.")
    _check_device(experiment.training.device)
    _check_rule(experiment)
    _check_searcher(experiment)
    return experiment


def _check_rule(experiment: Experiment) -> None:
    """A rule that does not fit the space says so at its first step."""
    recipe = experiment.training
    architectures_of(recipe.subnets, recipe.trained(experiment.space), experiment.seed, 0, 0.0)


def _check_device(name: str) -> None:
    try:
        known = name == "auto" or torch.empty(0, device=name) is not None
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"`training.device` must be auto or a device of PyTorch here: {name!r}: {reason}"
        ) from None
    assert known


def _check_searcher(experiment: Experiment) -> None:
    objectives = (Objective("accuracy", "%", "maximize"), Objective("cost", "", "minimize"))
    try:
        searcher = experiment.search.searcher(experiment.space, objectives, seed=0)
        fits = callable(searcher.ask) and callable(searcher.tell)
    except Exception as error:
        raise RunError(
            f"`search.searcher` must make a searcher from (space, objectives, seed=…), such as "
            f"nas.searchers.NSGA2, but {experiment.search.searcher!r} does not: {error}"
        ) from error
    assert fits


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """What an experiment is set to, as JSON data: all but data, space and code, which have hashes."""
    special = {"task": _of_task(experiment.task), "space": experiment.space.fingerprint}
    names = [f.name for f in fields(experiment) if f.name != "features"]
    settings: dict[str, Any] = {
        name: special.get(name) or describe(getattr(experiment, name)) for name in names
    }
    teacher = experiment.training.distillation.teacher
    if isinstance(teacher, str) and (weights := Path(teacher) / "model.safetensors").is_file():
        settings["training"]["distillation"]["teacher"] += f"{OF_WEIGHTS}{file_hash(weights)}"
    return settings


OF_WEIGHTS = " of weights "


def same_teacher(one: Any, other: Any) -> bool:
    """Whether `distillation.teacher` in `settings_of` is the same export, wherever it lies. One that is gone,
    as it may be once it has taught, is taken for the one that lay there."""
    if one == other:
        return True
    (folder, _, weights), (other_folder, _, others) = (str(t).partition(OF_WEIGHTS) for t in (one, other))
    if not Path(folder).is_absolute() or not Path(other_folder).is_absolute():
        return False  # modules are known by their classes, too
    return weights == others if weights and others else folder == other_folder


TRAINS_WITH = ("type", "fingerprint", "batches", "batch_size", "augment")
"""What a task's settings say of how it trains."""


def _of_task(task: Task) -> dict[str, Any]:
    """How a task goes about its data. These its fingerprint stands for, as it does for arrays, and for tuples
    that follow from them, such as means by channel."""
    about: dict[str, Any] = {
        "type": describe(type(task)),
        "fingerprint": task.fingerprint,
        "batches": task.batch_count("train"),
    }
    names: list[str] = [f.name for f in fields(task)] if is_dataclass(task) else []
    named = {name: getattr(task, name) for name in names}
    data = (np.ndarray, torch.Tensor, Mapping, tuple)
    return about | {name: describe(v) for name, v in named.items() if not isinstance(v, data)}


def available() -> list[str]:
    """Names of the experiments that come along."""
    folder = Path(next(iter(importlib.import_module("experiments").__path__)))
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def _load_module(name: str) -> ModuleType:
    if name.endswith(".py"):
        return _load_file(Path(name))
    if name not in available():
        raise RunError(f"An experiment must be a .py file or one of {', '.join(available())}: got {name!r}.")
    return importlib.import_module(f"experiments.{name}")


def module_name(path: Path) -> str:
    """What an experiment's file is imported as; a file called random.py must not hide the real one."""
    return f"_experiment_{path.stem}"


def _load_file(path: Path) -> ModuleType:
    """Imports a file. Its classes travel to Ray's workers by value, since those cannot import it."""
    if not path.is_file():
        raise RunError(f"An experiment must be a .py file that exists: got {path}.")
    path = path.resolve()  # what is loaded from it must know where it lies
    spec = importlib.util.spec_from_file_location(module_name(path), path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # for modules that lie beside it
    with _errors_of(path):
        spec.loader.exec_module(module)
    return module
