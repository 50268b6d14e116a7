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
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments import cifar10_small
from experiments.benchmarks.mixing import BUDGET, SCALE, SEEDS
from experiments.benchmarks.pieces import (
    Piece,
    epoch_seconds,
    epochs_in,
    predictions,
    select,
    share_of,
    trained_and_searched,
)
from experiments.benchmarks.results import FOLDER, between_marks, table, write
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
BASE = Recipe(learning_rate=3e-3, device="cpu", threads=1)
LABELS = Distillation(in_place=0.0)
TAUGHT = "single path, taught"
TEACHING = 0.4  # share of its core-seconds in which its teacher, the largest subnet, is trained alone
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
    "single path, averaged": replace(BASE, subnets=SinglePath(), ema=0.999),
    TAUGHT: replace(BASE, subnets=SinglePath()),
}
VOLUME, PANEL_ACCURACY = "hypervolume on select", "mean accuracy of the panel, %"
ENDS_ACCURACY = ("accuracy of the largest, %", "accuracy of the smallest, %")
PAGE = FOLDER.parent.parent / "docs" / "training.md"
PIECES = [(arm, seed) for seed in SEEDS for arm in ARMS]


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    task = cifar10_small.cifar10(data).fewer(search=SEARCHED)
    largest = cifar10_small.space(task).largest()
    untrained = hierarchical.build(largest).eval()
    arms = {arm: (partial(new_supernet, task), recipe) for arm, recipe in ARMS.items()}
    arms[TAUGHT] = (partial(new_supernet, task), taught_by(untrained))
    arms["its teacher"] = (partial(Supernet, hierarchical.build, Space(largest)), BASE.alone(largest))
    seconds = epoch_seconds(RAW / "seconds.json", arms, task)
    for arm, seed in share_of(PIECES, share):
        if not _file(arm, seed).exists():
            piece(task, arm, seed, seconds)
    if not share:
        report(task)


def piece(task: ImageClassification, arm: str, seed: int, seconds: Mapping[str, float]) -> None:
    """Trains, searches and judges one supernet; writes its predictions."""
    if arm != TAUGHT:
        recipe = replace(ARMS[arm], epochs=epochs_in(BUDGET, seconds[arm]))
        return judged(_file(arm, seed), task, recipe, seed, arm)
    start, largest = time.process_time(), cifar10_small.space(task).largest()
    teacher = Supernet(hierarchical.build, Space(largest), seed=seed)
    alone = replace(BASE.alone(largest), epochs=epochs_in(TEACHING * BUDGET, seconds["its teacher"]))
    with tempfile.TemporaryDirectory() as folder:
        train(teacher, task, alone, Path(folder), seed=seed)
    recipe = taught_by(teacher.extract(largest), epochs_in((1 - TEACHING) * BUDGET, seconds[arm]))
    judged(_file(arm, seed), task, recipe, seed, arm, before=time.process_time() - start)


def taught_by(teacher: nn.Module, epochs: int = 1) -> Recipe:
    """Half of the loss is a teacher's."""
    distillation = Distillation(in_place=0.0, external=0.5, teacher=teacher)
    return replace(ARMS[TAUGHT], distillation=distillation, epochs=epochs)


def judged(
    file: Path, task: ImageClassification, recipe: Recipe, seed: int, label: str, before: float = 0.0
) -> None:
    """Trains a supernet by a recipe and judges it as all rules are judged; writes a piece.

    Args:
        before: core-seconds that were spent on it already.
    """
    supernet = new_supernet(task, seed)
    trials, figures = trained_and_searched(supernet, task, recipe, seed, COST(supernet.space), label)
    figures["core_seconds"]["training"] += before
    space = supernet.space
    classes = {
        "front": predictions(supernet, [t.architecture for t in trials], task),
        "panel": predictions(supernet, panel(space), task, PANEL_IMAGES),
        "ends": predictions(supernet, [space.largest(), space.smallest()], task),
    }
    Piece.write(file, figures, classes)


def new_supernet(task: ImageClassification, seed: int = 0) -> Supernet:
    return Supernet(hierarchical.build, cifar10_small.space(task), seed=seed)


def panel(space: Space) -> list[Any]:
    """The same subnets for all, as many from each of eight bins of cost."""
    rule = CostBalanced(COST, bins=8)
    drawn: dict[Any, None] = {}
    step = 0
    while len(drawn) < PANEL:
        drawn[rule.at(space, 12, step, 0.0)[0]] = None
        step += 1
    return list(drawn)


# --- what all of them say -------------------------------------------------------------------------


def report(task: ImageClassification) -> None:
    np.save(RAW / "labels.npy", task.labels[select(task)].astype(np.uint8))
    results = evaluated(read())
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")
    print(f"written to {write('strategies', results)}")
    PAGE.write_text(with_table(PAGE.read_text(), results))


def with_table(page: str, results: dict[str, Any]) -> str:
    """The page of the documentation with the table of `results` between its marks."""
    return between_marks(
        page, "python -m experiments.benchmarks.strategies DATA", rules_table("rule", results)
    )


def rules_table(kind: str, results: dict[str, Any]) -> str:
    """A line for each arm, the best first."""
    columns = (kind, "epochs", "core-seconds", "panel", "largest", "smallest", "hypervolume (by seed)")
    names = [PANEL_ACCURACY, *ENDS_ACCURACY]
    rows = [
        (
            arm,
            results["epochs"][arm],
            f"{np.mean(results['core-seconds of training'][arm]):.0f}",
            *(f"{np.mean(results[name][arm]):.1f}" for name in names),
            f"{np.mean(volumes):.3f} ({', '.join(f'{v:.3f}' for v in volumes)})",
        )
        for arm, volumes in results[VOLUME].items()
    ]
    rows.sort(key=lambda row: -float(np.mean(results[VOLUME][row[0]])))
    return table(columns, rows)


def read() -> dict[tuple[str, int], Piece]:
    """The pieces that there are."""
    known = labels()
    return {(a, s): Piece.read(_file(a, s), known) for a, s in PIECES if _file(a, s).exists()}


def labels() -> np.ndarray:
    """Of *select*, in the order of all predictions."""
    found: np.ndarray = np.load(RAW / "labels.npy", allow_pickle=False)
    return found


def evaluated(pieces: dict[tuple[str, int], Piece]) -> dict[str, Any]:
    """Every figure, from the raw predictions alone; means over seeds, and each seed's."""
    arms = list(dict.fromkeys(arm for arm, _ in pieces))

    def by_seed(of: Any) -> dict[str, list[float]]:
        return {a: [round(float(of(pieces[a, s])), 4) for s in SEEDS if (a, s) in pieces] for a in arms}

    images = next(iter(pieces.values())).right["front"].shape[1]
    return {
        VOLUME: by_seed(lambda p: p.hypervolume(SCALE)),
        PANEL_ACCURACY: by_seed(lambda p: p.accuracies("panel").mean()),
        "accuracy of the panel by quarter of cost, %": {
            a: [round(float(v), 2) for v in _quarters([pieces[a, s] for s in SEEDS if (a, s) in pieces])]
            for a in arms
        },
        ENDS_ACCURACY[0]: by_seed(lambda p: p.accuracies("ends")[0]),
        ENDS_ACCURACY[1]: by_seed(lambda p: p.accuracies("ends")[1]),
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
    accuracies = np.mean([p.accuracies("panel") for p in pieces], axis=0)
    order = np.argsort(panel_costs(), kind="stable")
    return np.array([accuracies[part].mean() for part in np.array_split(order, 4)])


@cache
def panel_costs() -> np.ndarray:
    """MMACs of the panel, (PANEL,)."""
    space = cifar10_small.space(cifar10_small.IMAGES)
    return COST(space)(np.array([space.encode(a) for a in panel(space)]))


def _file(arm: str, seed: int) -> Path:
    return RAW / f"{arm.replace(',', '').replace(' ', '_')}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
