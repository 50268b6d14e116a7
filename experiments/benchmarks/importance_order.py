"""What it costs to cut a trained network, with and without its parts sorted by importance.

The largest network of a space is trained on digits by itself, no subnet beside it. Subnets with fewer
channels, heads or FFN units everywhere, or all of these, are then cut from its bank, not trained further,
and evaluated on *search* and *select* (450 images). Baseline: the order in which training left them.

    python -m experiments.benchmarks.importance_order
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks.results import FOLDER, write
from nas.evaluation import subnet_accuracy
from nas.importance import coupled_axes, magnitude, ordered, taylor
from nas.space import Space
from nas.supernet import Supernet
from nas.tasks import Task, digits
from nas.training import Recipe, Subnets, train
from search_spaces import hierarchical

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEEDS = (0, 1, 2)
SHARES = (0.25, 0.5, 0.75)
KINDS = ("channels", "heads", "units", "all three")
EPOCHS = 40


@dataclass(frozen=True)
class LargestAlone(Subnets):
    """No weight sharing: every step trains the largest network."""

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        return [space.largest()]


def main() -> None:
    torch.set_num_threads(1)
    task = digits()
    found = [of_seed(task, seed) for seed in SEEDS]
    whole = [full for full, _ in found]
    table = {name: np.array([accuracies[name] for _, accuracies in found]) for name in found[0][1]}
    lost = {name: np.array(whole)[:, None, None] - values for name, values in table.items()}
    results = {
        "accuracy of the whole network": whole,
        "points lost, mean": {n: float(v.mean()) for n, v in lost.items()},
        "points lost, by seed": {n: v.mean((1, 2)).tolist() for n, v in lost.items()},
        "points lost, by kind of cut": {
            n: dict(zip(KINDS, v.mean((0, 2)).tolist(), strict=True)) for n, v in lost.items()
        },
        "shares kept": SHARES,
        "accuracy [seed][kind][share]": {n: v.tolist() for n, v in table.items()},
    }
    for name, values in lost.items():
        kinds = "  ".join(f"{k} {v:.1f}" for k, v in results["points lost, by kind of cut"][name].items())  # type: ignore[index]
        print(
            f"{name:<12} loses {values.mean():.1f} points (by seed {values.mean((1, 2)).round(1)}): {kinds}"
        )
    draw(table, float(np.mean(whole)))
    print(f"written to {write('importance_order', results)}")


def of_seed(task: Task, seed: int) -> tuple[float, dict[str, list[list[float]]]]:
    """Accuracy of the whole network, in %, and by order that of its cuts, [kind][share]."""
    space = hierarchical.space(
        task,
        widths=((8, 16, 24, 32), (16, 32, 48, 64)),
        depths=(2, 2),
        heads=(1, 2, 3, 4),
        ratios=(0.75, 1.5, 2.25, 3),
        bits=(32,),
    )
    recipe = Recipe(epochs=EPOCHS, subnets=LargestAlone(), device="cpu", threads=1)
    with tempfile.TemporaryDirectory() as folder:
        supernet = train(
            Supernet(hierarchical.build, space, seed=seed), task, recipe, Path(folder), seed=seed
        )
    largest = space.largest()
    accuracies = {
        name: [[percent(each, cut(largest, kind, share), task) for share in SHARES] for kind in KINDS]
        for name, each in orders(supernet, largest, task).items()
    }
    return percent(supernet, largest, task), accuracies


def orders(supernet: Supernet, largest: Any, task: Task) -> dict[str, Supernet]:
    """The same network in three orders. Gradients are those of one pass over *train*."""
    example = next(iter(task.batches("train"))).inputs[0][:2]
    axes = coupled_axes(supernet, ("*.width", "*.heads", "*.ratio"), example)

    def loss(supernet: Supernet, batch: Any) -> Tensor:
        return task.loss(supernet(largest, *batch.inputs), batch)

    return {
        "as trained": supernet,
        "magnitude": ordered(supernet, magnitude(supernet, axes)),
        "Taylor": ordered(supernet, taylor(supernet, axes, loss, task.batches("train"))),
    }


def cut(architecture: Any, kind: str, share: float) -> Any:
    """`architecture` with a share of its channels, heads or units, the same everywhere."""
    every = kind == KINDS[-1]

    def block(whole: Any) -> Any:
        heads = whole.mixer.heads * (share if every or kind == "heads" else 1)
        ratio = whole.ffn.ratio * (share if every or kind == "units" else 1)
        return replace(
            whole, mixer=replace(whole.mixer, heads=int(heads)), ffn=replace(whole.ffn, ratio=ratio)
        )

    def stage(whole: Any) -> Any:
        width = whole.width * (share if every or kind == "channels" else 1)
        return replace(whole, width=int(width), blocks=tuple(map(block, whole.blocks)))

    return replace(architecture, stages=tuple(map(stage, architecture.stages)))


def percent(supernet: Supernet, architecture: Any, task: Task) -> float:
    search, select = (subnet_accuracy(supernet, architecture, task, s) for s in ("search", "select"))
    return (search + select).mean


def draw(table: dict[str, np.ndarray], whole: float) -> None:
    figure, panels = plt.subplots(1, len(KINDS), figsize=(11, 2.8), sharey=True)
    for i, (kind, axes) in enumerate(zip(KINDS, panels, strict=True)):
        for name, values in table.items():
            axes.plot([*SHARES, 1], [*values[:, i].mean(0), whole], marker="o", label=name)
        axes.set(title=kind, xlabel="share kept")
    panels[0].set_ylabel("accuracy, %")
    panels[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(FOLDER / "importance_order.png", dpi=120)


if __name__ == "__main__":
    main()
