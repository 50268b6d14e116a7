"""How far can the supernet's numbers be trusted? Subnets are trained alone and compared."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from rich.table import Table

from nas.architecture import architecture_id
from nas.assessment import Assessed, with_intervals
from nas.cluster import each
from nas.console import bar, console
from nas.errors import RunError
from nas.evaluation import answering
from nas.experiment import TRAINS_WITH, Experiment, settings_of
from nas.files import write_atomically
from nas.phases.chosen import Assessment, Chosen, choose, small_bins
from nas.phases.run import Run, without_guard
from nas.report.assessment import draw_assessment
from nas.supernet import Supernet
from nas.tasks import Batch, Split, Task, classified
from nas.threads import cpu_threads
from nas.training import ASIDE, Diverged, train

SPLIT: Split = "test"


@dataclass(frozen=True)
class Shared:
    """What every training alone needs."""

    experiment: Any
    folder: Path


def assess(run: Run, assessment: Assessment, workers: int) -> dict[str, Any]:
    """Trains subnets alone, as the supernet was (same recipe, epochs and images), and compares; writes
    `assessment/RECIPE` with the raw predictions, assessment.json and a picture. What is there is not done
    again."""
    _require_classes(run)
    chosen = choose(run.experiment, assessment)
    folder = raw_folder(run.directory.path, recipe := recipe_id(run.experiment))
    folder.mkdir(parents=True, exist_ok=True)
    todo = [(c, s) for c in chosen for s in range(assessment.seeds) if not _file(folder, c, s).exists()]
    console.print(
        f"Assessment: {len(chosen)} subnets, {assessment.seeds} trainings each; {len(todo)} are left to do."
    )
    for line in small_bins(chosen, assessment):
        console.print(f"[yellow]{line}")
    shared = Shared(run.experiment, folder.resolve())
    with bar("Train subnets alone", len(todo)) as progress:
        options: dict[str, Any] = {"workers": workers, "address": run.address, "by_value": run.modules}
        options["device"] = run.experiment.training.device
        diverged = list[str]()
        for (subnet, seed), right in each(_train_alone, shared, todo, **options):
            if isinstance(right, str):
                diverged.append(right)
                continue
            _write(_file(folder, subnet, seed), right)
            shutil.rmtree(_work(folder, subnet, seed), ignore_errors=True)
            progress.advance(f"{subnet.id} seed {seed}: {100 * right.mean():.2f} %")
    if diverged:
        raise RunError(
            f"No training alone must diverge, but {len(diverged)} did; the others are kept. The first: "
            f"{diverged[0]} Where the loss would have come down again, let it: `{without_guard(run)}`, and "
            f"then this command once more. Else these subnets cannot be trained alone as the supernet was."
        )
    assessed = Assessed(
        np.array([c.cost for c in chosen]),
        np.array([c.bin for c in chosen]),
        np.array([_inherited(run, c.architecture, folder) for c in chosen]),
        np.array([[read_right(_file(folder, c, s)) for s in range(assessment.seeds)] for c in chosen]),
        np.array([c.seen for c in chosen]),
    )
    results = _results(run, assessment, chosen, assessed) | {"ends": _ends(run, folder), "recipe": recipe}
    path = run.directory.path / "assessment.json"
    write_atomically(path, json.dumps(results, indent=1, allow_nan=False) + "\n")
    picture = draw_assessment(results, run.directory.path / "assessment.png")
    for written in (path, picture):
        run.tracker.artifact(written)
    _print(results)
    console.print(f"Assessment: {path}, {picture}; raw predictions: {folder}")
    return results


def _train_alone(shared: Shared, item: tuple[Chosen, int]) -> np.ndarray | str:
    """Which images of `SPLIT` a subnet answers right that was trained alone, bool (images,); or how its
    training diverged."""
    (subnet, seed), experiment = item, shared.experiment
    recipe = replace(experiment.training.alone(subnet.architecture), threads=1)
    alone = experiment.begun(subnet.architecture, 1000 + seed)
    try:
        train(alone, experiment.task, recipe, _work(shared.folder, subnet, seed), seed=1000 + seed)
    except Diverged as error:
        return error.fact
    return _right(alone, subnet.architecture, experiment.task)


def _right(supernet: Supernet, architecture: Any, task: Task) -> np.ndarray:
    answer, found = answering(supernet, architecture, task), list[np.ndarray]()
    with torch.inference_mode(), cpu_threads(1):
        for batch in task.batches(SPLIT):
            found.append(_right_of(batch, answer(*batch.inputs), task))
    return np.concatenate(found)


def _right_of(batch: Batch, answer: torch.Tensor, task: Task) -> np.ndarray:
    """Which examples of a batch the task's own metric takes for right, bool (B,)."""
    name = task.metric.name
    alone = zip(*(x.split(1) for x in (answer, batch.targets, *batch.inputs)), strict=True)
    values = np.array([task.tallies(one, Batch(tuple(x), target))[name].mean for one, target, *x in alone])
    if not np.isin(values, (0, 100)).all() and not np.isin(values, (0, 1)).all():
        raise RunError(
            f"`nas assess` must have a metric that takes each example for right or wrong, 0 or 100: {name} "
            f"of {type(task).__name__} gives {values[:3].tolist()} of the first ones."
        )
    return (values > 0) == (task.metric.direction == "maximize")


def _inherited(run: Run, architecture: Any, folder: Path) -> np.ndarray:
    path = folder / f"{architecture_id(architecture)}-inherited-{run.weights}.npz"
    if not path.exists():
        _write(path, _right(run.supernet, architecture, run.experiment.task))
    return read_right(path)


def _ends(run: Run, folder: Path) -> dict[str, dict[str, Any]]:
    """What the largest and the smallest subnet inherit, in %."""
    space = run.experiment.space
    return {
        name: {"id": architecture_id(a), "inherited": float(100 * _inherited(run, a, folder).mean())}
        for name, a in (("largest", space.largest()), ("smallest", space.smallest()))
    }


def _require_classes(run: Run) -> None:
    """Raises RunError for a task of which no example is right or wrong, before anything is trained."""
    task, largest = run.experiment.task, run.experiment.space.largest()
    if not classified(batch := next(iter(task.batches("select")))):
        raise RunError(
            f"`nas assess` must have a task with one class per example: got targets of {batch.targets.dtype} "
            f"{tuple(batch.targets.shape)} from {type(task).__name__}."
        )
    with torch.inference_mode(), cpu_threads(1):
        _right_of(batch, answering(run.supernet, largest, task)(*batch.inputs), task)


# --- files ----------------------------------------------------------------------------------------


def raw_folder(run: Path, recipe: str) -> Path:
    """Where the raw predictions of an assessment are, of subnets that were trained by that recipe."""
    return run / "assessment" / recipe


def recipe_id(experiment: Experiment) -> str:
    """Of all settings that a training alone depends on but architecture and seed."""
    alone = experiment.training.alone(None)
    settings = settings_of(replace(experiment, training=alone))
    training = {k: v for k, v in settings["training"].items() if k not in ASIDE}
    data = {k: v for k, v in settings["task"].items() if k in TRAINS_WITH}
    about = [training, settings["quantization"], data]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def _file(folder: Path, subnet: Chosen, seed: int) -> Path:
    return folder / f"{subnet.id}-{seed}.npz"


def _work(folder: Path, subnet: Chosen, seed: int) -> Path:
    """Where a training keeps its checkpoints until its predictions are written."""
    return folder / "unfinished" / f"{subnet.id}-{seed}"


def _write(path: Path, right: np.ndarray) -> None:
    """Eight images to a byte, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, right=np.packbits(right), n=np.array(len(right)))
    os.replace(temporary, path)


def read_right(path: Path) -> np.ndarray:
    """Which images were answered right, bool (images,). Raises RunError for a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as data:
            right: np.ndarray = np.unpackbits(data["right"], count=int(data["n"])).astype(bool)
    except (BadZipFile, zlib.error, OSError, ValueError, KeyError, EOFError) as error:
        raise RunError(
            f"{path} must hold raw predictions, but is damaged ({error}). Remove it: what it held is made "
            f"again."
        ) from error
    return right


# --- what it says ---------------------------------------------------------------------------------


def _results(
    run: Run, assessment: Assessment, chosen: Sequence[Chosen], assessed: Assessed
) -> dict[str, Any]:
    accuracies = 100 * assessed.alone.mean(2)
    subnets = [
        {
            "id": c.id,
            "architecture": run.experiment.space.to_json(c.architecture),
            "bin": c.bin,
            "mmacs": c.cost,
            "seen": c.seen,
            "inherited": float(100 * assessed.inherited[i].mean()),
            "alone": accuracies[i].tolist(),
        }
        for i, c in enumerate(chosen)
    ]
    return {
        "figures": with_intervals(assessed),
        "subnets": subnets,
        "settings": vars(assessment) | {"split": SPLIT, "images": int(assessed.inherited.shape[1])},
        "weights": run.weights,
    }


def _print(results: dict[str, Any]) -> None:
    table = Table(title=f"Inherited against alone ({results['settings']['images']} images of test)")
    for column in ("figure", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, figure in results["figures"].items():
        value, *ends = ("–" if v is None else f"{v:.3f}" for v in (figure["value"], *figure["interval_95"]))
        table.add_row(name, value, " to ".join(ends))
    console.print(table)
