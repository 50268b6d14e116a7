"""Comparisons in pieces: one training each, done once, kept as raw predictions from which figures follow."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.evaluation import answering, subnet_accuracy
from nas.executor import SerialExecutor
from nas.log import TrialLog
from nas.objectives import Objective, as_costs
from nas.pareto import Scale, crowding_distance, hypervolume, nondominated
from nas.searchers import NSGA2
from nas.study import Study
from nas.supernet import Supernet
from nas.tasks import ImageClassification, Split, Task
from nas.threads import cpu_threads
from nas.training import Recipe, train
from nas.trial import Candidate, Evaluation, Trial

Costs = Callable[[np.ndarray], np.ndarray]
"""Of genes (n, genes), (n,)."""
EVALUATIONS = 200  # of a search
FINALISTS = 12


# --- searching ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """Accuracy on *search* and the cost of a candidate."""

    supernet: Supernet
    task: ImageClassification
    name: str
    cost: Costs

    def __call__(self, candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
        tally = subnet_accuracy(self.supernet, candidate.architecture, self.task, "search")
        cost = float(self.cost(self.supernet.space.encode(candidate.architecture)[None])[0])
        return Evaluation({"accuracy": tally.mean, self.name: cost}, tally.n, tally.std_error)


def front(
    supernet: Supernet, task: ImageClassification, folder: Path, seed: int, cost: Costs, name: str = "mmacs"
) -> list[Trial]:
    """The non-dominated trials of a search of accuracy against `cost`, at most `FINALISTS` of them."""
    objectives = (Objective("accuracy", "%", "maximize"), Objective(name, "", "minimize"))
    study = Study(
        "nsga2",
        supernet.space,
        objectives,
        NSGA2(supernet.space, objectives, seed=seed),
        SerialExecutor(Judge(supernet, task, name, cost)),
        TrialLog(folder / "trials.jsonl", supernet.space),
        trials=EVALUATIONS,
        parallel=1,
        weights="here",
    )
    trials = study.run()
    found = as_costs(objectives, [t.objectives for t in trials])
    best = np.flatnonzero(nondominated(found))
    widest = np.argsort(-crowding_distance(found[best]), kind="stable")[:FINALISTS]
    return [trials[i] for i in sorted(best[widest], key=lambda i: float(found[i, 1]))]


def trained_and_searched(
    supernet: Supernet, task: ImageClassification, recipe: Recipe, seed: int, cost: Costs, label: str
) -> tuple[list[Trial], dict[str, Any]]:
    """The finalists of a supernet that is trained here, and their figures with the core-seconds of both."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        train(supernet, task, recipe, Path(folder), seed=seed)
        trained = time.process_time()
        trials = front(supernet, task, Path(folder), seed, cost)
        searched = time.process_time()
    seconds = {"training": trained - start, "search": searched - trained}
    figures: dict[str, Any] = {"epochs": recipe.epochs, "core_seconds": seconds} | found_by(trials, supernet)
    spent = f"{seconds['training']:.0f} + {seconds['search']:.0f} core-seconds"
    best = max(figures["search_accuracy"])
    print(f"{label} {seed}: {recipe.epochs} epochs, {spent}, {best:.1f} %", flush=True)
    return trials, figures


# --- core-seconds ---------------------------------------------------------------------------------


def epoch_seconds(
    path: Path, arms: Mapping[str, tuple[Callable[[], Supernet], Recipe]], task: ImageClassification
) -> dict[str, float]:
    """Core-seconds of an epoch of each arm: all of them timed in turn, once for all (those that come later,
    beside one another)."""
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    new = [name for name in arms if name not in known]
    if new:
        few = task.fewer(train=20 * task.batch_size)
        share = len(task.splits["train"]) / len(few.splits["train"])
        seconds = np.array([[_an_epoch(few, *arms[name]) for name in new] for _ in range(2)]).mean(0)
        known |= dict(zip(new, (share * seconds).tolist(), strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known))
    return known


def epochs_in(budget: float, seconds: float) -> int:
    """How many epochs of so many core-seconds come nearest to a budget."""
    return max(1, round(budget / seconds))


def _an_epoch(task: ImageClassification, supernet: Callable[[], Supernet], recipe: Recipe) -> float:
    """Core-seconds, the mean over a short training: rules may change with its progress, and what is done but
    once is a small part of a whole training."""
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        note = lambda _: marks.append(time.process_time())  # noqa: E731
        train(supernet(), task, replace(recipe, epochs=6), Path(folder), on_epoch=note)
    return (marks[-1] - marks[0]) / (len(marks) - 1)


# --- raw predictions ------------------------------------------------------------------------------


def select(task: ImageClassification) -> np.ndarray:
    """Indices of *select* in a random order: the files may go by class."""
    order: np.ndarray = np.random.default_rng(0).permutation(task.splits["select"])
    return order


def predictions(
    supernet: Supernet, architectures: Iterable[Any], task: ImageClassification, n: int | None = None
) -> np.ndarray:
    """Classes of the first `n` images of *select*, uint8 (architectures, n)."""
    first = replace(task, splits=dict(task.splits) | {"select": select(task)[:n]})
    return np.array([classes_of(supernet, architecture, first) for architecture in architectures])


def classes_of(supernet: Supernet, architecture: Any, task: Task, split: Split = "select") -> np.ndarray:
    """Of the images of a split, in its order, uint8 (images,)."""
    answer = answering(supernet, architecture, task)
    with torch.inference_mode(), cpu_threads(1):
        found = [answer(*batch.inputs).argmax(-1).numpy() for batch in task.batches(split)]
    return np.concatenate(found).astype(np.uint8)


def packed(classes: np.ndarray) -> np.ndarray:
    """(n, images) of 0 … 15, two to a byte: (n, images / 2), of an even number of images."""
    classes = np.pad(classes, ((0, 0), (0, classes.shape[1] % 2)))
    packed: np.ndarray = classes[:, ::2] << 4 | classes[:, 1::2]
    return packed


def unpacked(packed: np.ndarray) -> np.ndarray:
    """What `packed` packed."""
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(len(packed), -1)


@dataclass(frozen=True)
class Piece:
    """What is known of one training: figures, and by group of subnets, which predictions are right.

    Attributes:
        right: bool (architectures, images) by name; "front" are the finalists of a search.
    """

    figures: dict[str, Any]
    right: dict[str, np.ndarray]

    @staticmethod
    def write(file: Path, figures: Mapping[str, Any], classes: Mapping[str, np.ndarray]) -> None:
        """`classes` as `predictions` gives them; whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        with open(temporary, "wb") as stream:
            arrays: dict[str, Any] = {name: packed(rows) for name, rows in classes.items()}
            np.savez_compressed(stream, figures=np.array(json.dumps(figures)), **arrays)
        os.replace(temporary, file)

    @classmethod
    def read(cls, file: Path, labels: np.ndarray) -> Piece:
        with np.load(file, allow_pickle=False) as data:
            rows = {name: unpacked(data[name]) for name in data.files if name != "figures"}
            figures = json.loads(str(data["figures"]))
        return cls(figures, {name: row == labels[: row.shape[1]] for name, row in rows.items()})

    def accuracies(self, group: str, counts: np.ndarray | None = None) -> np.ndarray:
        """In %, (architectures,), where each image counts so many times, (images,)."""
        right = self.right[group]
        counts = np.ones(right.shape[1]) if counts is None else counts
        accuracies: np.ndarray = 100 * right @ counts / counts.sum()
        return accuracies

    def hypervolume(self, scale: Scale, counts: np.ndarray | None = None) -> float:
        """Of the finalists' accuracy against their MACs."""
        return hypervolume(np.stack([-self.accuracies("front", counts), self.figures["mmacs"]], 1), scale)


def found_by(trials: Sequence[Trial], supernet: Supernet, name: str = "mmacs") -> dict[str, Any]:
    """Figures of the finalists of a search."""
    return {
        name: [t.objectives[name] for t in trials],
        "search_accuracy": [t.objectives["accuracy"] for t in trials],
        "architectures": [supernet.space.to_json(t.architecture) for t in trials],
    }


def share_of(pieces: Sequence[Any], share: str) -> Sequence[Any]:
    """The pieces of a share such as 0/2; all of them for an empty one."""
    first, shares = map(int, share.split("/")) if share else (0, 1)
    return pieces[first::shares]


# --- a bootstrap of seeds and images --------------------------------------------------------------


def differences(
    first: Sequence[Piece], second: Sequence[Piece], of: Callable[[Piece, np.ndarray], float], resamples: int
) -> np.ndarray:
    """Mean difference of a figure over seeds, first less second: the one found, then those of resamples.

    Args:
        first, second: pieces by seed.
        of: of a piece, where each image counts so many times, (images,).
    """
    images = first[0].right["front"].shape[1]

    def difference(seeds: np.ndarray, counts: np.ndarray) -> float:
        return float(np.mean([of(first[s], counts) - of(second[s], counts) for s in seeds]))

    found = difference(np.arange(len(first)), np.ones(images))
    drawn = resampled(images, len(first), resamples)
    return np.array([found, *(difference(seeds, counts) for seeds, counts in drawn)])


def resampled(images: int, seeds: int, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Seeds, and how often each image was drawn, both with replacement (a bootstrap of both levels)."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        drawn = rng.integers(images, size=images)
        yield rng.integers(seeds, size=seeds), np.bincount(drawn, minlength=images)


def interval(values: np.ndarray) -> dict[str, Any]:
    """The value found, which comes first, with the 95 % interval of the others."""
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return {"mean": round(float(values[0]), 4), "interval_95": [round(float(low), 4), round(float(high), 4)]}
