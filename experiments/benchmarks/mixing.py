"""Does mixing pay? One supernet over five mixers against five supernets of one mixer each, on CIFAR-10.

    python -m experiments.benchmarks.mixing DATA [share/shares]

DATA is what `experiments/cifar10_small.py` takes. Every supernet gets the epochs that are to take `BUDGET`
core-seconds, all passes of all subnets counted, by one timing of all in turn (what each took is in the
results), and is searched with as many evaluations. Fronts are chosen on
*search* and compared on *select*: hypervolume of accuracy against multiply-accumulates on `SCALE`, with a
bootstrap over seeds and images. A seventh supernet has one mixer more: what does that cost the others?

The work falls into pieces, one a supernet, which are done once and kept with their raw predictions in
results/mixing/: `0/2` and `1/2` of them may run side by side (one thread each), and a later call goes on. The
call without a share does what is left and writes what all of them say.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from experiments import cifar10_small
from experiments.benchmarks.pieces import (
    EVALUATIONS,
    Piece,
    differences,
    epoch_seconds,
    epochs_in,
    interval,
    predictions,
    resampled,
    select,
    share_of,
    trained_and_searched,
)
from experiments.benchmarks.results import FOLDER, write
from nas.layers import Mixer
from nas.layers.mixers.channel import Channel
from nas.pareto import Scale, hypervolume, nondominated
from nas.space import oneof
from nas.supernet import Supernet
from nas.tasks import ImageClassification
from nas.training import Recipe
from search_spaces import hierarchical
from search_spaces.costs import Mmacs

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Stated before the first run.
BUDGET = 240.0  # core-seconds of training a supernet
SEEDS = (0, 1, 2)
SCALE = Scale(ideal=(-75.0, 0.2), nadir=(-30.0, 4.0))  # −accuracy in %, MMACs
SEARCHED = 2000  # images of *search* in each evaluation
DRAWN, DRAWN_IMAGES = 12, 2000  # random subnets a space, and images of *select*, for the cost of sharing
RESAMPLES = 2000

SINGLES: dict[str, tuple[Mixer, ...]] = {type(m).__name__: (m,) for m in cifar10_small.MIXERS}
MIXED, ONE_MORE = "mixed", "one more"
ARMS = SINGLES | {
    MIXED: cifar10_small.MIXERS,
    ONE_MORE: (
        Channel(heads=oneof(1, 2, 4), head_dim=8),
        *cifar10_small.MIXERS,
    ),  # the last one's largest teaches
}
PIECES = [(arm, seed) for seed in SEEDS for arm in ARMS]
SIDE = 32
RAW = FOLDER / "mixing"
BASE = Recipe(learning_rate=3e-3, device="cpu", threads=1)


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    task = cifar10_small.cifar10(data).fewer(search=SEARCHED)
    arms = {arm: (lambda arm=arm: _supernet(task, arm), BASE) for arm in ARMS}
    seconds = epoch_seconds(RAW / "seconds.json", arms, task)
    for arm, seed in share_of(PIECES, share):
        if not _file(arm, seed).exists():
            piece(task, arm, seed, epochs_in(BUDGET, seconds[arm]))
    if not share:
        report(task)


# --- one supernet -------------------------------------------------------------------------------


def piece(task: ImageClassification, arm: str, seed: int, epochs: int) -> None:
    """Trains, searches and judges one supernet; writes its predictions."""
    supernet, recipe = _supernet(task, arm, seed), replace(BASE, epochs=epochs)
    trials, figures = trained_and_searched(supernet, task, recipe, seed, Mmacs(SIDE)(supernet.space), arm)
    classes = {"front": predictions(supernet, [t.architecture for t in trials], task)}
    for name, mixers in (SINGLES | {MIXED: ARMS[MIXED]}).items():
        if set(mixers) <= set(ARMS[arm]):
            classes[name] = predictions(supernet, draws(task, mixers), task, DRAWN_IMAGES)
    Piece.write(_file(arm, seed), figures, classes)


def _supernet(task: ImageClassification, arm: str, seed: int = 0) -> Supernet:
    return Supernet(hierarchical.build, cifar10_small.space(task, ARMS[arm]), seed=seed)


def draws(task: ImageClassification, mixers: Sequence[Mixer]) -> list[Any]:
    """The same random architectures of a space for every supernet that holds them."""
    space, rng = cifar10_small.space(task, mixers), np.random.default_rng(0)
    return [space.sample(rng) for _ in range(DRAWN)]


Pieces = Mapping[tuple[str, int], Piece]


# --- what all of them say -------------------------------------------------------------------------


def report(task: ImageClassification) -> None:
    np.save(RAW / "labels.npy", task.labels[select(task)].astype(np.uint8))
    pieces = read()
    draw(pieces)
    results = evaluated(pieces)
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")
    print(f"written to {write('mixing', results)}")


def read() -> Pieces:
    labels = np.load(RAW / "labels.npy", allow_pickle=False)
    return {(arm, seed): Piece.read(_file(arm, seed), labels) for arm, seed in PIECES}


def evaluated(pieces: Pieces) -> dict[str, Any]:
    """Every figure, from the raw predictions alone."""
    n = pieces[MIXED, 0].right["front"].shape[1]
    volumes = {arm: [pieces[arm, s].hypervolume(SCALE) for s in SEEDS] for arm in ARMS}
    searched = {arm: np.mean([_searched(pieces[arm, s]) for s in SEEDS]) for arm in ARMS}
    best = max(SINGLES, key=lambda arm: searched[arm])  # chosen without *select*
    return {
        "hypervolume on select": volumes,
        "best single mixer, by search": best,
        "mixed - best single": interval(_differences(pieces, MIXED, best)),
        "mixed - each single": {arm: interval(_differences(pieces, MIXED, arm)) for arm in SINGLES},
        "one more - mixed": interval(_differences(pieces, ONE_MORE, MIXED)),
        "best accuracy on select, %": {
            arm: [round(float(pieces[arm, s].accuracies("front").max()), 4) for s in SEEDS] for arm in ARMS
        },
        "what sharing costs a mixer, points (mixed - alone)": {
            arm: interval(_points(pieces, MIXED, arm, arm)) for arm in SINGLES
        },
        "what one more costs the others, points (one more - mixed)": {
            name: interval(_points(pieces, ONE_MORE, MIXED, name)) for name in (*SINGLES, MIXED)
        },
        "mixers on the mixed front": _counted(pieces),
        "epochs": {arm: pieces[arm, 0].figures["epochs"] for arm in ARMS},
        "core-seconds of training": {
            arm: [round(pieces[arm, s].figures["core_seconds"]["training"]) for s in SEEDS] for arm in ARMS
        },
        "settings": {
            "budget_core_seconds": BUDGET,
            "scale": {"ideal": SCALE.ideal, "nadir": SCALE.nadir},
            "evaluations": EVALUATIONS,
            "images": {"search": SEARCHED, "select": n, "drawn": DRAWN_IMAGES},
        },
    }


def _searched(piece: Piece) -> float:
    figures = piece.figures
    costs_of = np.stack([-np.array(figures["search_accuracy"]), figures["mmacs"]], 1)
    return hypervolume(costs_of, SCALE)


def _differences(pieces: Pieces, arm: str, other: str) -> np.ndarray:
    """Mean difference in hypervolume over seeds: the one found, then those of resamples."""
    first, second = ([pieces[a, s] for s in SEEDS] for a in (arm, other))
    return differences(first, second, lambda p, counts: p.hypervolume(SCALE, counts), RESAMPLES)


def _points(pieces: Pieces, arm: str, other: str, space: str) -> np.ndarray:
    """Mean difference in accuracy of the same random subnets, in points, as `_differences`."""
    pairs = [(pieces[arm, s].right[space], pieces[other, s].right[space]) for s in SEEDS]
    by_image = 100 * np.array([a.mean(0) - b.mean(0) for a, b in pairs])  # (seeds, images)
    n = by_image.shape[1]
    drawn = resampled(n, len(SEEDS), RESAMPLES)
    resamples = (by_image[seeds].mean(0) @ counts / n for seeds, counts in drawn)
    return np.array([by_image.mean(), *resamples])


def _counted(pieces: Pieces) -> dict[str, int]:
    """How many blocks of the mixed fronts use each mixer."""
    fronts = [pieces[MIXED, s].figures["architectures"] for s in SEEDS]
    blocks = [b for front in fronts for a in front for stage in a["stages"] for b in stage["blocks"]]
    return dict(Counter(block["mixer"]["type"] for block in blocks))


def draw(pieces: Pieces) -> None:
    figure, panels = plt.subplots(1, len(SEEDS), figsize=(12, 3.6), sharey=True, layout="constrained")
    for seed, axes in zip(SEEDS, panels, strict=True):
        for arm in ARMS:
            piece = pieces[arm, seed]
            accuracy = piece.accuracies("front")
            mmacs = np.array(piece.figures["mmacs"])
            kept = nondominated(np.stack([-accuracy, mmacs], 1))
            thick = 2.4 if arm in (MIXED, ONE_MORE) else 1
            axes.step(mmacs[kept], accuracy[kept], where="post", linewidth=thick, label=arm)
        axes.set(title=f"seed {seed}", xlabel="MMACs", xscale="log")
        axes.set_xticks([0.25, 0.5, 1, 2, 4], labels=["0.25", "0.5", "1", "2", "4"])
        axes.minorticks_off()
    panels[0].set_ylabel("accuracy on select, %")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    figure.savefig(FOLDER / "mixing.png", dpi=120)


def _file(arm: str, seed: int) -> Path:
    return RAW / f"{arm.replace(' ', '_')}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
