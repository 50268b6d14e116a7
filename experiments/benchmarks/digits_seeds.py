"""The main job over three seeds, beside nearest neighbour and a support vector machine on the same split.

The best subnet of a run is the point of its verified front with the highest accuracy on *select*. Its
correctness on each *test* image is compared with that of 1-NN on the same image: the interval of the mean
difference comes from a paired bootstrap over images and seeds.

    python -m experiments.benchmarks.digits_seeds [folder of runs]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from experiments import digits
from experiments.benchmarks.results import write
from nas.evaluation import statistics
from nas.experiment import Experiment
from nas.phases import run_experiment
from nas.tasks import ImageClassification
from nas.training import load_tensors

SEEDS = (0, 1, 2)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/seeds")
    runs = [best_of_run(folder, seed) for seed in SEEDS]
    task = digits.experiment().task
    assert isinstance(task, ImageClassification)
    neighbour = baseline(task, KNeighborsClassifier(1).fit)
    machine = baseline(task, SVC(C=10.0, gamma="scale").fit)
    correct = np.stack([r.pop("correct") for r in runs])  # seeds, images
    low, high = paired_interval(correct, neighbour)
    results = {
        "best_subnet_test_accuracy": [100 * float(c.mean()) for c in correct],
        "mean": 100 * float(correct.mean()),
        "nearest_neighbour": 100 * float(neighbour.mean()),
        "rbf_svc": 100 * float(machine.mean()),
        "difference_to_nearest_neighbour": {
            "mean": 100 * float(correct.mean() - neighbour.mean()),
            "interval_95": [low, high],
        },
        "n_test": correct.shape[1],
        "runs": runs,
        "wrong_test_images": [np.flatnonzero(~c).tolist() for c in correct],
        "wrong_test_images_nearest_neighbour": np.flatnonzero(~neighbour).tolist(),
    }
    print(f"written to {write('digits_seeds', results)}")
    for key in list(results)[:6]:
        print(f"{key}: {results[key]}")
    for found in runs:
        print(found)


def best_of_run(folder: Path, seed: int) -> dict[str, Any]:
    """Runs the main job with a seed (or continues it); the best point and what the front spans."""
    experiment = replace(digits.experiment(), seed=seed, name=f"digits-seed{seed}")
    entries = run_experiment(experiment, folder, resume=True)
    front = [e for e in entries if e["front"]]
    best = max(front, key=lambda e: e["objectives"]["accuracy"]["measured"])
    path = folder / experiment.name / "supernet" / "model.safetensors"
    supernet = experiment.supernet().with_state(load_tensors(path)[0])
    architecture = experiment.space.from_json(best["architecture"])
    buffers = statistics(supernet, architecture, experiment.task)
    module = supernet.extract(architecture, buffers=buffers)
    return {
        "seed": seed,
        "best": best["id"],
        "points": len(front),
        "points_apart": points_apart(front),
        "latency_ratio": span(front, "latency_ms.onnxruntime"),
        "parameters_ratio": span(front, "parameters"),
        "lowest_select_accuracy": min(e["objectives"]["accuracy"]["measured"] for e in front),
        "highest_select_accuracy": best["objectives"]["accuracy"]["measured"],
        "correct": correct_on_test(experiment, module),
    }


def correct_on_test(experiment: Experiment, module: torch.nn.Module) -> np.ndarray:
    """Which test images a module gets right, bool (n,)."""
    with torch.inference_mode():
        right = [module(*b.inputs).argmax(-1) == b.targets for b in experiment.task.batches("test")]
    return torch.cat(right).numpy()


def span(front: list[dict[str, Any]], name: str) -> float:
    values = [e["objectives"][name]["measured"] for e in front]
    return max(values) / min(values)


def points_apart(front: list[dict[str, Any]]) -> int:
    """The longest chain of points, by accuracy, in which each is better than the one before by more
    than the standard error of the difference."""
    qualities = sorted(
        (e["objectives"]["accuracy"]["measured"], e["objectives"]["accuracy"]["std_error"]) for e in front
    )
    chain = qualities[:1]
    for mean, error in qualities[1:]:
        if mean - chain[-1][0] > float(np.hypot(error, chain[-1][1])):
            chain.append((mean, error))
    return len(chain)


def baseline(task: ImageClassification, fit: Callable[[np.ndarray, np.ndarray], Any]) -> np.ndarray:
    """Which test images a classifier fitted on *train* gets right, bool (n,)."""
    train, test = task.splits["train"], task.splits["test"]
    pixels = task.images.reshape(len(task.images), -1)
    return fit(pixels[train], task.labels[train]).predict(pixels[test]) == task.labels[test]


def paired_interval(correct: np.ndarray, other: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of the mean difference in points, over resampled seeds and images."""
    rng = np.random.default_rng(0)
    seeds, n = correct.shape
    differences = []
    for _ in range(draws):
        rows, columns = rng.integers(seeds, size=seeds), rng.integers(n, size=n)
        differences.append(correct[np.ix_(rows, columns)].mean() - other[columns].mean())
    low, high = np.percentile(differences, (2.5, 97.5))
    return 100 * float(low), 100 * float(high)


if __name__ == "__main__":
    main()
