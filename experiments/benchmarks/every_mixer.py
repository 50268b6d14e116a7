"""Subnets of each mixer alone and of each channel mixer alone, drawn from one bank over all of them.

    python -m experiments.benchmarks.every_mixer [folder of runs]

Prints the bank's size by what is shared, the accuracy on *select* of `DRAWN` random subnets per mixer and
channel mixer, and the largest difference between supernet and extracted module over `COMPARED` random
subnets. The `WORST` subnets below `AIM` are trained alone by the same recipe, to see what they could be
worth; so is the barest one, behind this stem and behind a linear one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from experiments import every_mixer
from experiments.benchmarks.results import FOLDER, write
from nas.evaluation import statistics, subnet_accuracy
from nas.layers import NoFfn, OverlapStem
from nas.layers.mixers.pooling import Pooling
from nas.space import Space
from nas.supernet import Supernet
from nas.tasks import Task
from nas.training import Epoch, Only, Recipe, train
from search_spaces import hierarchical

matplotlib.use("Agg")
import matplotlib.pyplot as plt

AIM = 90.0  # % on *select*
DRAWN = 20
WORST = 3
COMPARED = 300
OUTSIDE = "neither mixers nor channel mixers"


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs") / "every_mixer" / "supernet"
    experiment = every_mixer.experiment()
    task, recipe, supernet = experiment.task, experiment.training, experiment.supernet()
    sizes = sharing(supernet)
    print_sharing(sizes)
    train(supernet, task, recipe, folder, on_epoch=counted(folder))
    spent = core_seconds(folder)
    print(f"training: {recipe.epochs} epochs, {spent:.0f} core-seconds")
    found = {
        "mixer": alone(supernet, task, every_mixer.MIXERS, every_mixer.one_mixer()),
        "ffn": alone(supernet, task, every_mixer.FFNS, every_mixer.one_ffn()),
    }
    trained_alone({name: row for rows in found.values() for name, row in rows.items()}, task, recipe)
    barest = stems(task, recipe)
    difference = largest_difference(supernet, experiment.space, task, COMPARED)
    print(f"largest extraction difference over {COMPARED} random architectures: {difference}")
    results = {
        "weights": sum(sizes.values()),
        "sharing": sizes,
        "shares": shares(sizes),
        "space": str(experiment.space.size),
        "epochs": recipe.epochs,
        "core_seconds": spent,
        "select_accuracy": {
            family: {name: {k: v for k, v in row.items() if k != "worst"} for name, row in rows.items()}
            for family, rows in found.items()
        },
        "pooling_alone_without_ffn": barest,
        "largest_extraction_difference": difference,
        "architectures_compared": COMPARED,
    }
    print(f"written to {write('every_mixer', results)} and {draw(found)}")


# --- the bank -----------------------------------------------------------------------------------


def sharing(supernet: Supernet) -> dict[str, int]:
    """Weights by the mixers and channel mixers that use them; stem, norms, positions … are `OUTSIDE`."""
    users: dict[str, set[str]] = defaultdict(set)
    for architecture in supernet.space.cover():
        names = supernet.parameter_bits(architecture)
        for s, stage in enumerate(architecture.stages):
            for b, block in enumerate(stage.blocks):
                for part in ("mixer", "ffn"):
                    prefix = f"stages.{s}.blocks.{b}.{part}."
                    for name in names:
                        if name.startswith(prefix):
                            users[name].add(type(getattr(block, part)).__name__)
    sizes: dict[str, int] = defaultdict(int)
    for name, tensor in supernet.state().items():
        sizes[", ".join(sorted(users[name])) or OUTSIDE] += tensor.numel()
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def shares(sizes: Mapping[str, int]) -> dict[str, float]:
    """% of the bank: for all architectures alike, shared by several choices, of one choice alone."""
    parts = {OUTSIDE: 0, "several choices": 0, "one choice": 0}
    for users, weights in sizes.items():
        kind = users if users == OUTSIDE else "several choices" if ", " in users else "one choice"
        parts[kind] += weights
    return {kind: 100 * weights / sum(sizes.values()) for kind, weights in parts.items()}


def print_sharing(sizes: Mapping[str, int]) -> None:
    total = sum(sizes.values())
    print(f"the bank: {total:,d} weights, by what uses them")
    for users, weights in sizes.items():
        print(f"  {weights:9,d}  {100 * weights / total:5.1f} %  {users}")
    print("  " + "; ".join(f"{kind}: {share:.1f} %" for kind, share in shares(sizes).items()))


# --- training -----------------------------------------------------------------------------------


def counted(folder: Path) -> Callable[[Epoch], None]:
    """Writes the core-seconds of each epoch beside the checkpoint; repeated ones count again."""
    last = time.process_time()

    def note(epoch: Epoch) -> None:
        nonlocal last
        now = time.process_time()
        with open(folder / "core_seconds.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch.epoch, "core_seconds": now - last}) + "\n")
        last = now
        print(f"  epoch {epoch.epoch}: loss {epoch.loss:.3f}", flush=True)

    return note


def core_seconds(folder: Path) -> float:
    lines = (folder / "core_seconds.jsonl").read_text().splitlines()
    return sum(float(json.loads(line)["core_seconds"]) for line in lines)


def plain(architecture: Any, task: Task, recipe: Recipe) -> float:
    """Accuracy on *select* of an architecture that is trained alone, in %."""
    module = Supernet(hierarchical.build, Space(architecture))
    with tempfile.TemporaryDirectory() as folder:
        train(module, task, replace(recipe, subnets=Only(architecture)), Path(folder))
    return subnet_accuracy(module, architecture, task, "select").mean


# --- what subnets are worth ---------------------------------------------------------------------


def alone(
    supernet: Supernet, task: Task, choices: list[type[Any]], spaces: tuple[Space, ...]
) -> dict[str, dict[str, Any]]:
    """Accuracy on *select* of random subnets of each space, where one of `choices` is the only one."""
    print(f"{'accuracy on select, %':24} mean   least  below {AIM:.0f} of {DRAWN}")
    found = {}
    for choice, space in zip(choices, spaces, strict=True):
        rng = np.random.default_rng(0)
        drawn = [space.sample(rng) for _ in range(DRAWN)]
        accuracies = [subnet_accuracy(supernet, a, task, "select").mean for a in drawn]
        row = {
            "mean": float(np.mean(accuracies)),
            "least": min(accuracies),
            "below": sum(a < AIM for a in accuracies),
            "all": accuracies,
            "worst": drawn[int(np.argmin(accuracies))],
        }
        print(f"  {choice.__name__:22} {row['mean']:5.1f}   {row['least']:5.1f}  {row['below']}", flush=True)
        found[choice.__name__] = row
    return found


def trained_alone(rows: dict[str, dict[str, Any]], task: Task, recipe: Recipe) -> None:
    """Adds to the `WORST` rows with a subnet below `AIM` what their least one is worth when trained alone."""
    for name in sorted(rows, key=lambda name: rows[name]["least"])[:WORST]:
        row = rows[name]
        if row["below"]:
            row["least_trained_alone"] = plain(row["worst"], task, recipe)
            told = f"{row['least']:.1f}, trained alone {row['least_trained_alone']:.1f}"
            print(f"  least of {name}: {told}", flush=True)


def stems(task: Task, recipe: Recipe) -> dict[str, float]:
    """The smallest subnet of pooling without channel mixers, trained alone: this stem and a linear one."""
    barest = every_mixer.space(task, [Pooling], [NoFfn]).smallest()
    found = {
        "this stem": plain(barest, task, recipe),
        "linear stem": plain(replace(barest, stem=OverlapStem(1)), task, recipe),
    }
    print("pooling without channel mixers, smallest, trained alone: ", end="")
    print("; ".join(f"{stem} {accuracy:.1f}" for stem, accuracy in found.items()))
    return found


def largest_difference(supernet: Supernet, space: Space, task: Task, n: int) -> float:
    """Between supernet and extracted module, over `n` random architectures with statistics of their own."""
    images = next(iter(task.batches("select"))).inputs[0][:8]
    rng = np.random.default_rng(1)
    worst = 0.0
    with torch.inference_mode():
        for _ in range(n):
            architecture = space.sample(rng)
            buffers = statistics(supernet, architecture, task)
            module = supernet.extract(architecture, buffers=buffers)
            difference = supernet(architecture, images, buffers=buffers) - module(images)
            worst = max(worst, float(difference.abs().max()))
    return worst


def draw(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Path:
    """Bars from the least to the mean of each choice; every subnet a dot."""
    counts = [len(rows) for rows in found.values()]
    figure, axes = plt.subplots(
        len(found), 1, sharex=True, figsize=(7, 0.24 * sum(counts) + 1.2), height_ratios=counts
    )
    for axis, (family, rows) in zip(axes, found.items(), strict=True):
        for i, row in enumerate(rows.values()):
            axis.barh(i, row["mean"] - row["least"], left=row["least"], color="tab:blue", alpha=0.3)
            axis.plot(row["all"], [i] * len(row["all"]), ".", color="tab:blue", markersize=3)
            axis.plot(row["mean"], i, "|", color="black", markersize=11)
        axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axis.invert_yaxis()
        axis.axvline(AIM, color="tab:red", linewidth=1)
        axis.set_ylabel({"mixer": "mixer alone", "ffn": "channel mixer alone"}[family])
    axes[0].set_title(f"{DRAWN} random subnets each, from one bank: least to mean (|)", fontsize=10)
    axes[-1].set_xlabel("accuracy on select, %")
    figure.tight_layout()
    path = FOLDER / "every_mixer.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main()
