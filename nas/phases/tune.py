"""Which recipe? Short trainings of several, of which the promising ones go on."""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from rich.table import Table

from nas.cluster import each
from nas.cluster.tuning import Report, Settings, Tried, rungs, tune
from nas.console import bar, console
from nas.errors import RunError
from nas.evaluation import subnet_accuracy
from nas.experiment import TRAINS_WITH, Experiment, settings_of
from nas.files import write_atomically
from nas.phases.run import Run
from nas.rundir import RunDirectory
from nas.settings import differences, replaced
from nas.space import Space
from nas.tasks import Metric, Mix, classified
from nas.training import (
    ASIDE,
    Diverged,
    OneBatch,
    Progressive,
    Sandwich,
    SinglePath,
    Subnets,
    architectures_of,
    core_seconds,
    seconds_of_steps,
    train,
)

SUFFIX = "-tune"
RECIPE = "recipe.json"
STORAGE, BEGUN, SPENT, COSTS = "optuna.db", "tuning.json", "core_seconds.json", "costs.json"
PANEL = 6  # random subnets, beside the largest and the smallest, by whose accuracy a recipe is judged
RULES = {f"nas.training.{rule.__name__}": rule for rule in (Sandwich, SinglePath, OneBatch, Progressive)}


@dataclass(frozen=True)
class Tuning:
    """How long is tried.

    Attributes:
        samples: configurations.
        epochs: of a training that is not ended before, by the rule whose steps take least; by another rule it
            has those that take as long, as one measurement says.
    """

    samples: int = 24
    epochs: int = 27

    def __post_init__(self) -> None:
        for name in ("samples", "epochs"):
            if getattr(self, name) < 1:
                raise RunError(f"`--{name}` must be 1 or more: got {getattr(self, name)}.")


def tunable(experiment: Experiment) -> dict[str, BaseDistribution]:
    """What is tuned, as Optuna's distributions by setting."""
    recipe = experiment.training
    needs_largest = recipe.project or recipe.distillation.features
    rules = [
        name
        for name, rule in RULES.items()
        if (rule.teaches or not needs_largest) and _has_steps(rule(), recipe.trained(experiment.space))
    ]
    space: dict[str, BaseDistribution] = {
        "training.learning_rate": FloatDistribution(3e-4, 2e-2, log=True),
        "training.weight_decay": FloatDistribution(1e-3, 0.3, log=True),
        "training.subnets": CategoricalDistribution(rules),
        "training.distillation.in_place": CategoricalDistribution([0.0, 0.5, 1.0]),
    }
    if hasattr(experiment.task, "classes") and _takes_shares(experiment.task):
        space["training.mix.label_smoothing"] = FloatDistribution(0.0, 0.2)
        if importlib.util.find_spec("kornia") and len(getattr(experiment.task, "image_shape", ())) == 3:
            space["training.mix.mixup"] = CategoricalDistribution([0.0, 0.2, 0.8])
            space["training.mix.cutmix"] = CategoricalDistribution([0.0, 1.0])
    return space


def _takes_shares(task: Any) -> bool:
    """Whether loss and metrics of a task with `classes` can be told of targets between them (B, classes)."""
    batch, name = next(iter(task.batches("select"))), task.metric.name
    if not classified(batch):
        return False
    outputs = torch.zeros(len(batch.targets), task.classes)
    try:
        mixed = Mix(label_smoothing=0.1)(batch, task.classes, torch.Generator())
        tallies = [task.tallies(outputs, b)[name] for b in (batch, mixed)]
        return tallies[0].n == tallies[1].n and bool(task.loss(outputs, mixed).isfinite())
    except Exception:  # a user's, written for whole classes
        return False


def _has_steps(rule: Subnets, space: Space) -> bool:
    """Whether a rule can be used on a space: widening needs a choice to widen."""
    try:
        return bool(architectures_of(rule, space, 0, 0, 0.0))
    except RunError:
        return False


def with_settings(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """`experiment` with settings changed, as --set would."""
    changed: Experiment = replaced(experiment, {path: str(value) for path, value in settings.items()})
    return changed


def as_it_is(experiment: Experiment, space: Mapping[str, BaseDistribution]) -> Settings | None:
    """The experiment's own recipe as a configuration; None where it is none of those that are tried."""
    settings: Settings = {}
    for path, distribution in space.items():
        value: Any = experiment
        for part in path.split("."):
            value = getattr(value, part)
        if path == "training.subnets":
            value = f"nas.training.{type(value).__name__}"
        try:
            inside = distribution._contains(distribution.to_internal_repr(value))
        except ValueError:
            inside = False
        if not inside:
            return None
        settings[path] = value
    rule = RULES[settings["training.subnets"]]
    return settings if experiment.training.subnets == rule() else None


def tune_recipe(run: Run, tuning: Tuning, workers: int) -> dict[str, Any]:
    """Tries recipes; writes recipe.json with the best one's settings. What was tried counts."""
    experiment, folder = run.experiment, run.directory.path
    metric = experiment.task.metric
    sign = 1 if metric.direction == "maximize" else -1
    _require_same(experiment, tuning, folder)
    space = tunable(experiment)
    rules = space["training.subnets"]
    assert isinstance(rules, CategoricalDistribution)
    costs = _costs(run, [str(rule) for rule in rules.choices])
    first = as_it_is(experiment, space)
    if first is None:
        console.print("Recipe: the experiment's own is not among those that are tried.")
    console.print(f"Recipe: {tuning.samples} configurations of {', '.join(space)}.")

    failures = list[str]()
    with bar("Tune the recipe", tuning.samples) as progress:
        seconds = _Seconds(folder / SPENT)

        def follow(tried: Tried) -> None:
            figures = {"score": tried.score, "time": tried.time, "core_seconds": seconds.of(tried.settings)}
            run.tracker.configuration(tried.number, tried.settings, figures)

        def note(tried: Tried) -> None:
            seconds.add(tried.settings, tried.core_seconds)
            progress.advance(f"{metric.text(sign * tried.score)} after {tried.time} of {tuning.epochs}")
            follow(tried)

        found = tune(
            _objective,
            (experiment, tuning.epochs, costs),
            space,
            folder / STORAGE,
            samples=tuning.samples,
            longest=tuning.epochs,
            first=first,
            seed=experiment.seed,
            workers=workers,
            device=experiment.training.device,
            address=run.address,
            on_trial=note,
            on_failure=failures.append,
            by_value=run.modules,
        )
    if failures:
        console.print(
            f"{len(failures)} of {tuning.samples} configurations failed, and count for nothing; the first: "
            f"{failures[0]}"
        )
    for tried in found:  # a call that was killed may have left some out
        follow(tried)
    best = found[0]
    trials = [
        {
            "number": t.number,
            "settings": t.settings,
            "score": t.score,
            "time": t.time,
            "core_seconds": seconds.of(t.settings),
        }
        for t in sorted(found, key=lambda t: t.number)
    ]
    given = {k: v for k, v in run.source.settings.items() if k != "tracking"}  # may hold a password
    results = {"settings": best.settings, "set": given, "score": best.score, "default": first}
    results |= {"trials": trials, "failed": len(failures), "costs": costs}  # failures of this call
    path = folder / RECIPE
    write_atomically(path, json.dumps(results, indent=1) + "\n")
    run.tracker.artifact(path)
    _print(found[:5], metric, sign, tuning.epochs)
    command = ["nas", "run", run.source.path or run.source.name, "--recipe"]  # which has what was `given`
    if folder.parent.resolve() != Path("runs").resolve():
        command += ["--run-dir", str(folder.parent)]
    if "name" in given:  # by which the recipe is found
        command += ["--set", f"name={given['name']}"]
    console.print(f"Best recipe: {path}. Use it with: {shlex.join(command)}")
    return results


@dataclass(frozen=True)
class _Seconds:
    """Core-seconds by configuration, in a file: Optuna's storage has no place for them, and configurations do
    not end in the order of its numbers."""

    path: Path

    def add(self, settings: Settings, seconds: float) -> None:
        known = self._read()
        known[_key(settings)] = self.of(settings) + seconds
        write_atomically(self.path, json.dumps(known, indent=1) + "\n")

    def of(self, settings: Settings) -> float:
        return self._read().get(_key(settings), 0.0)

    def _read(self) -> dict[str, float]:
        known: dict[str, float] = json.loads(self.path.read_text()) if self.path.exists() else {}
        return known


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def _require_same(experiment: Experiment, tuning: Tuning, folder: Path) -> None:
    """What is compared must have been trained alike.

    Raises:
        RunError: what was tried before had other epochs, data or settings.
    """
    path = folder / BEGUN
    settings = settings_of(experiment)
    training = {name: value for name, value in settings["training"].items() if name not in (*ASIDE, "ema")}
    data = {name: value for name, value in settings["task"].items() if name in TRAINS_WITH}
    about = {"epochs": tuning.epochs, "data": data, "training": training, "compared": "by time, at rungs"}
    about |= {name: settings[name] for name in ("space", "quantization", "seed")}
    now = json.loads(json.dumps(about))
    if (folder / STORAGE).exists() and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = list(differences(before, now))
        if changed:
            raise RunError(
                f"Configurations in {folder} must have been tried alike, but {'; '.join(changed)}. Tune as "
                f"before, or in another --run-dir."
            )
    elif not path.exists() or json.loads(path.read_text(encoding="utf-8")) != now:
        (folder / COSTS).unlink(missing_ok=True)  # what a killed call has measured of other settings
    write_atomically(path, json.dumps(now, indent=1) + "\n")


def recipe_settings(run_dir: Path, name: str) -> dict[str, str]:
    """The settings that `nas tune` found best for an experiment of that name, and those that it was given.

    Raises:
        RunError: it was not tuned.
    """
    directory = RunDirectory(run_dir / f"{name}{SUFFIX}")
    path = directory.path / RECIPE
    if not path.exists():
        raise RunError(
            f"`--recipe` must find what `nas tune {name}` wrote, but there is no {path}. Tune it, or leave "
            f"it out."
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    best, given = found["settings"], found.get("set", {})  # a rule was tried with its own defaults
    given = {k: v for k, v in given.items() if not any(k.startswith(f"{path}.") for path in best)}
    return {key: str(value) for key, value in (given | best).items()}


def _costs(run: Run, rules: Sequence[str]) -> dict[str, float]:
    """How many times as long as one of the cheapest rule a step of each takes: measured once, and kept."""
    path = run.directory.path / COSTS
    if path.exists():
        known: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return known
    options: dict[str, Any] = {"address": run.address, "by_value": run.modules}
    options["device"] = run.experiment.training.device
    with bar("Measure the rules", 1) as progress:
        ((_, seconds),) = each(_seconds_of, run.experiment, [tuple(rules)], workers=1, **options)
        costs = {rule: round(s / min(seconds), 2) for rule, s in zip(rules, seconds, strict=True)}
        progress.advance(", ".join(f"{rule.rpartition('.')[2]} {cost}" for rule, cost in costs.items()))
    write_atomically(path, json.dumps(costs, indent=1) + "\n")
    return costs


def _seconds_of(experiment: Experiment, rules: Sequence[str]) -> list[float]:
    """Of a step by each rule."""
    recipes = [with_settings(experiment, {"training.subnets": rule}).training for rule in rules]
    supernet = experiment.supernet()
    return seconds_of_steps(supernet, experiment.task, [replace(r, workers=1, ema=0.0) for r in recipes])


def _objective(
    shared: tuple[Experiment, int, Mapping[str, float]], settings: Settings, report: Report
) -> None:
    """A training as long as so many epochs of the cheapest rule, judged after equal times."""
    experiment, times, costs = shared
    experiment = with_settings(experiment, settings)
    space, rng = experiment.training.trained(experiment.space), np.random.default_rng(0)
    panel = [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(PANEL))]
    supernet = experiment.supernet()
    recipe = replace(
        experiment.training,
        epochs=max(1, round(times / costs[settings["training.subnets"]])),
        checkpoint_seconds=1e9,
        workers=1,
        threads=1,
        ema=0.0,
    )
    in_epoch = math.ceil(experiment.task.batch_count("train") / recipe.accumulate)
    due = dict[int, list[int]]()  # a step may be the last of several times, where an epoch has few
    for t in rungs(times):
        due.setdefault(math.ceil(t * in_epoch * recipe.epochs / times), []).append(t)
    start = core_seconds()

    def judge(step: int) -> None:
        if step in due:
            found = [subnet_accuracy(supernet, a, experiment.task, "search").mean for a in panel]
            metric = experiment.task.metric
            if not math.isfinite(mean := float(np.mean(found))):
                raise RunError(f"The {metric.name} of subnets must be finite: got {found} after step {step}.")
            sign, spent = 1 if metric.direction == "maximize" else -1, core_seconds() - start
            for t in due[step]:
                report(math.ceil(step / in_epoch), sign * mean, spent, time=t)

    with tempfile.TemporaryDirectory() as folder:
        try:
            train(supernet, experiment.task, recipe, Path(folder), seed=experiment.seed, on_step=judge)
        except Diverged as error:  # its remedy is for a run
            raise RunError(error.fact) from error


def _print(best: list[Tried], metric: Metric, sign: int, longest: int) -> None:
    table = Table(title=f"Best recipes (mean {metric.name} of a panel of subnets on search)")
    names = list(best[0].settings)
    for column in (metric.name, f"of {longest}", *(n.removeprefix("training.") for n in names)):
        table.add_column(column, justify="right")
    for tried in best:
        values = [tried.settings[n] for n in names]
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v).rpartition(".")[2] for v in values]
        table.add_row(metric.text(sign * tried.score), str(tried.time), *cells)
    console.print(table)
