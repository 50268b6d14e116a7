"""Which recipe? Short trainings of several, of which the promising ones go on."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from rich.table import Table

from nas.cluster.tuning import Report, Settings, Tried, tune
from nas.console import bar, console
from nas.errors import RunError
from nas.evaluation import subnet_accuracy
from nas.experiment import Experiment
from nas.phases.run import Run
from nas.rundir import RunDirectory, write_atomically
from nas.settings import replaced
from nas.training import Epoch, OneBatch, Progressive, Sandwich, SinglePath, train

SUFFIX = "-tune"
RECIPE = "recipe.json"
SPENT = "core_seconds.json"  # of each configuration, as it ended
PANEL = 6  # random subnets, beside the largest and the smallest, by whose accuracy a recipe is judged
RULES = {f"nas.training.{rule.__name__}": rule for rule in (Sandwich, SinglePath, OneBatch, Progressive)}


@dataclass(frozen=True)
class Tuning:
    """How long is tried.

    Attributes:
        samples: configurations.
        epochs: of a training that is not ended before and trains one subnet a step; one that trains several
            has as many fewer, since all are compared by equal work.
    """

    samples: int = 24
    epochs: int = 27

    def __post_init__(self) -> None:
        for name in ("samples", "epochs"):
            if getattr(self, name) < 1:
                raise RunError(f"`--{name}` must be 1 or more: got {getattr(self, name)}.")


def tunable(experiment: Experiment) -> dict[str, BaseDistribution]:
    """What is tuned, as Optuna's distributions by setting."""
    space: dict[str, BaseDistribution] = {
        "training.learning_rate": FloatDistribution(3e-4, 2e-2, log=True),
        "training.weight_decay": FloatDistribution(1e-3, 0.3, log=True),
        "training.subnets": CategoricalDistribution(list(RULES)),
        "training.distillation.in_place": CategoricalDistribution([0.0, 0.5, 1.0]),
    }
    if hasattr(experiment.task, "classes"):
        space["training.mix.label_smoothing"] = FloatDistribution(0.0, 0.2)
        if importlib.util.find_spec("kornia") and len(getattr(experiment.task, "image_shape", ())) == 3:
            space["training.mix.mixup"] = CategoricalDistribution([0.0, 0.2, 0.8])
            space["training.mix.cutmix"] = CategoricalDistribution([0.0, 1.0])
    return space


def with_settings(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """`experiment` with settings changed, as --set would."""
    for path, value in settings.items():
        experiment = replaced(experiment, path, str(value))
    return experiment


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
    space = tunable(experiment)
    first = as_it_is(experiment, space)
    console.print(f"Recipe: {tuning.samples} configurations of {', '.join(space)}.")

    with bar("Tune the recipe", tuning.samples) as progress:
        spent = folder / SPENT
        seconds: dict[str, float] = json.loads(spent.read_text()) if spent.exists() else {}

        def note(tried: Tried) -> None:
            seconds[str(tried.number)] = tried.core_seconds
            write_atomically(spent, json.dumps(seconds) + "\n")
            progress.advance(f"score {tried.score:.2f} after {tried.epochs} epochs")
            numbers = {k: v for k, v in tried.settings.items() if isinstance(v, (int, float))}
            run.tracker.metrics(
                tried.number, numbers | {"score": tried.score, "epochs": tried.epochs}, "tune"
            )

        found = tune(
            _objective,
            (experiment, tuning.epochs),
            space,
            folder / "optuna.db",
            samples=tuning.samples,
            longest=tuning.epochs,
            first=first,
            seed=experiment.seed,
            workers=workers,
            address=run.address,
            on_trial=note,
            by_value=run.modules,
        )
    best = found[0]
    trials = [
        vars(t) | {"core_seconds": seconds.get(str(t.number))} for t in sorted(found, key=lambda t: t.number)
    ]
    results = {"settings": best.settings, "score": best.score, "default": first, "trials": trials}
    path = folder / RECIPE
    write_atomically(path, json.dumps(results, indent=1) + "\n")
    run.tracker.artifact(path)
    _print(found[:5])
    name = experiment.name.removesuffix(SUFFIX)
    console.print(f"Best recipe: {path}. Use it with: nas run {name} --recipe")
    return results


def recipe_settings(run_dir: Path, name: str) -> dict[str, str]:
    """The settings that `nas tune` found best for an experiment of that name.

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
    settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    return {key: str(value) for key, value in settings.items()}


def _objective(shared: tuple[Experiment, int], settings: Settings, report: Report) -> None:
    """A short training, judged after each epoch; its time is in passes of a subnet over *train*."""
    experiment, epochs = shared
    experiment = with_settings(experiment, settings)
    space, rng = experiment.space, np.random.default_rng(0)
    panel = [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(PANEL))]
    supernet, passes = experiment.supernet(), _passes(experiment)
    recipe = replace(
        experiment.training,
        epochs=max(1, round(epochs / passes)),
        checkpoint_seconds=1e9,
        workers=1,
        threads=1,
        ema=0.0,
    )

    start = time.process_time()

    def judge(epoch: Epoch) -> None:
        found = [subnet_accuracy(supernet, a, experiment.task, "search").mean for a in panel]
        sign = 1 if experiment.task.metric.direction == "maximize" else -1
        spent = time.process_time() - start
        report(epoch.epoch, sign * float(np.mean(found)), spent, time=passes * epoch.epoch)

    with tempfile.TemporaryDirectory() as folder:
        train(supernet, experiment.task, recipe, Path(folder), seed=experiment.seed, on_epoch=judge)


def _passes(experiment: Experiment) -> float:
    """How many subnets go over the whole batch in a step, the mean over a training."""
    rule, space = experiment.training.subnets, experiment.training.trained(experiment.space)
    if rule.shares_batch:
        return 1.0
    return float(np.mean([len(rule.at(space, 0, step, step / 10)) for step in range(10)]))


def _print(best: list[Tried]) -> None:
    table = Table(title="Best recipes (mean accuracy of a panel of subnets on search)")
    names = list(best[0].settings)
    for column in ("score", "epochs", *(n.removeprefix("training.") for n in names)):
        table.add_column(column, justify="right")
    for tried in best:
        values = [tried.settings[n] for n in names]
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v).rpartition(".")[2] for v in values]
        table.add_row(f"{tried.score:.2f}", str(tried.epochs), *cells)
    console.print(table)
