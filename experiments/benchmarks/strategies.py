"""Which subnets should a step train? All rules of `nas.training`, at equal core-seconds, on CIFAR-10.

    python -m experiments.benchmarks.strategies DATA [share/shares]

DATA is what `experiments/cifar10_small.py` takes; its space and its 10,000 images are those of this
comparison. Every supernet gets the epochs that are to take `BUDGET` core-seconds, all passes of all subnets
counted, by one timing of all in turn. It is judged by the accuracy on *select* of the same `PANEL` of
subnets, drawn evenly by cost, by its largest and smallest subnet, and by the front that a search of equal
length finds (chosen on *search*, compared on *select*): hypervolume of accuracy against
multiply-accumulates.

The work falls into pieces, one a supernet, which are done once and kept with their raw predictions in
results/strategies/: `0/2` and `1/2` of them may run side by side (one thread each), and a later call goes on.
The call without a share does what is left and writes what all of them say.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import cifar10_small
from experiments.benchmarks.mixing import (
    BUDGET,
    SCALE,
    SEEDS,
    Piece,
    front,
    packed,
    predictions,
    select,
)
from experiments.benchmarks.results import FOLDER, write
from nas.space import Space
from nas.supernet import Supernet
from nas.tasks import ImageClassification
from nas.training import (
    BoundedJumps,
    CostBalanced,
    Distillation,
    Nested,
    OneBatch,
    Progressive,
    Recipe,
    Sandwich,
    SinglePath,
    train,
)
from search_spaces import hierarchical
from search_spaces.costs import Mmacs

SIDE = 32
SEARCHED, PANEL, PANEL_IMAGES = 2000, 32, 2000
COST = Mmacs(SIDE)
RAW = FOLDER / "strategies"
BASE = Recipe(device="cpu", threads=1)
LABELS = Distillation(in_place=0.0)
ARMS: dict[str, Recipe] = {
    "sandwich": replace(BASE, subnets=Sandwich(random=2)),
    "single path": replace(BASE, subnets=SinglePath()),
    "sandwich without the smallest": replace(BASE, subnets=Sandwich(random=3, smallest=False)),
    "sandwich, labels alone": replace(BASE, subnets=Sandwich(random=2), distillation=LABELS),
    "sandwich, projected": replace(BASE, subnets=Sandwich(random=2), project=True),
    "nested": replace(BASE, subnets=Nested("ratio", rest="random")),
    "one batch": replace(BASE, subnets=OneBatch(4)),
    "cost-balanced": replace(BASE, subnets=CostBalanced(COST)),
    "bounded jumps": replace(BASE, subnets=BoundedJumps(COST)),
    "progressive": replace(BASE, subnets=Progressive()),
}
PIECES = [(arm, seed) for seed in SEEDS for arm in ARMS]


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    task = cifar10_small.cifar10(data).fewer(search=SEARCHED)
    RAW.mkdir(parents=True, exist_ok=True)
    epochs = epochs_for(task)
    first, shares = map(int, share.split("/")) if share else (0, 1)
    for arm, seed in PIECES[first::shares]:
        if not _file(arm, seed).exists():
            piece(task, arm, seed, epochs[arm])
    if not share:
        report(task)


def piece(task: ImageClassification, arm: str, seed: int, epochs: int) -> None:
    """Trains, searches and judges one supernet; writes its predictions."""
    space = cifar10_small.space(task)
    recipe = replace(ARMS[arm], epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        supernet = train(
            Supernet(hierarchical.build, space, seed=seed), task, recipe, Path(folder), seed=seed
        )
        trained = time.process_time()
        trials = front(supernet, task, Path(folder), seed)
        searched = time.process_time()
    n = len(select(task))
    rows = {
        "select": [predictions(supernet, t.architecture, task, n) for t in trials],
        "drawn panel": [predictions(supernet, a, task, PANEL_IMAGES) for a in panel(space)],
        "drawn ends": [predictions(supernet, a, task, n) for a in (space.largest(), space.smallest())],
    }
    figures: dict[str, Any] = {
        "epochs": epochs,
        "core_seconds": {"training": trained - start, "search": searched - trained},
        "mmacs": [t.objectives["mmacs"] for t in trials],
        "search_accuracy": [t.objectives["accuracy"] for t in trials],
        "architectures": [space.to_json(t.architecture) for t in trials],
    }
    arrays: dict[str, Any] = {name: packed(np.array(row)) for name, row in rows.items()}
    temporary = RAW / f"{_file(arm, seed).stem}.tmp"
    with open(temporary, "wb") as file:
        np.savez_compressed(file, figures=np.array(json.dumps(figures)), **arrays)
    os.replace(temporary, _file(arm, seed))
    spent = f"{trained - start:.0f} + {searched - trained:.0f} core-seconds"
    print(f"{arm} {seed}: {epochs} epochs, {spent}, {max(figures['search_accuracy']):.1f} %", flush=True)


def panel(space: Space) -> list[Any]:
    """The same subnets for all, as many from each of eight bins of cost."""
    rule = CostBalanced(COST, bins=8)
    drawn: dict[Any, None] = {}
    step = 0
    while len(drawn) < PANEL:
        drawn[rule.at(space, 12, step, 0.0)[0]] = None
        step += 1
    return list(drawn)


def epochs_for(task: ImageClassification) -> dict[str, int]:
    """How many epochs each rule gets for `BUDGET`: all of them timed in turn, once for all."""
    path = RAW / "epochs.json"
    if not path.exists():
        few = task.fewer(train=20 * task.batch_size)
        seconds = np.array([[_seconds(few, recipe) for recipe in ARMS.values()] for _ in range(2)]).mean(0)
        an_epoch = seconds * len(task.splits["train"]) / len(few.splits["train"])
        path.write_text(
            json.dumps({a: max(1, round(BUDGET / s)) for a, s in zip(ARMS, an_epoch, strict=True)})
        )
    known: dict[str, int] = json.loads(path.read_text())
    return known


def _seconds(task: ImageClassification, recipe: Recipe) -> float:
    """Core-seconds of an epoch, the mean over a short training (rules may change with its progress)."""
    space = cifar10_small.space(task)
    supernet = Supernet(hierarchical.build, space)
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        note = lambda _: marks.append(time.process_time())  # noqa: E731
        train(supernet, task, replace(recipe, epochs=6), Path(folder), on_epoch=note)
    return (marks[-1] - marks[0]) / (len(marks) - 1)


# --- what all of them say -------------------------------------------------------------------------


def report(task: ImageClassification) -> None:
    labels = task.labels[select(task)].astype(np.uint8)
    np.save(RAW / "labels.npy", labels)
    results = evaluated(read())
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")
    print(f"written to {write('strategies', results)}")


def read() -> dict[tuple[str, int], Piece]:
    """The pieces that there are."""
    labels = np.load(RAW / "labels.npy", allow_pickle=False)
    return {(a, s): Piece.read(_file(a, s), labels) for a, s in PIECES if _file(a, s).exists()}


def evaluated(pieces: dict[tuple[str, int], Piece]) -> dict[str, Any]:
    """Every figure, from the raw predictions alone; means over seeds, and each seed's."""
    arms = [arm for arm in ARMS if any((arm, s) in pieces for s in SEEDS)]

    def by_seed(of: Any) -> dict[str, list[float]]:
        return {a: [round(float(of(pieces[a, s])), 4) for s in SEEDS if (a, s) in pieces] for a in arms}

    images = next(iter(pieces.values())).right.shape[1]
    return {
        "hypervolume on select": by_seed(lambda p: p.hypervolume(np.ones(images))),
        "mean accuracy of the panel, %": by_seed(lambda p: 100 * p.drawn["panel"].mean()),
        "accuracy of the panel by quarter of cost, %": {
            a: [round(float(v), 2) for v in _quarters([pieces[a, s] for s in SEEDS if (a, s) in pieces])]
            for a in arms
        },
        "accuracy of the largest, %": by_seed(lambda p: 100 * p.drawn["ends"][0].mean()),
        "accuracy of the smallest, %": by_seed(lambda p: 100 * p.drawn["ends"][1].mean()),
        "epochs": {a: next(pieces[a, s] for s in SEEDS if (a, s) in pieces).figures["epochs"] for a in arms},
        "core-seconds of training": by_seed(lambda p: p.figures["core_seconds"]["training"]),
        "settings": {
            "budget_core_seconds": BUDGET,
            "scale": {"ideal": SCALE.ideal, "nadir": SCALE.nadir},
            "panel": PANEL,
            "images": {"search": SEARCHED, "panel": PANEL_IMAGES, "select": images},
        },
    }


def _quarters(pieces: Sequence[Piece]) -> np.ndarray:
    """Mean accuracy of the panel by quarter of its costs, from small to large, in %."""
    accuracies = 100 * np.mean([p.drawn["panel"].mean(1) for p in pieces], axis=0)
    order = np.argsort(panel_costs(), kind="stable")
    return np.array([accuracies[part].mean() for part in np.array_split(order, 4)])


def panel_costs() -> np.ndarray:
    """MMACs of the panel, (PANEL,)."""
    space = cifar10_small.space(_Images())  # type: ignore[arg-type]
    return COST(space)(np.array([space.encode(a) for a in panel(space)]))


class _Images:
    classes, image_shape = 10, (3, SIDE, SIDE)


def _file(arm: str, seed: int) -> Path:
    return RAW / f"{arm.replace(',', '').replace(' ', '_')}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
