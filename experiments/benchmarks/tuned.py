"""Does tuning pay? The recipe that `nas tune` found against the default one, over three seeds, on CIFAR-10.

    nas tune cifar10_small --set data=DATA --samples 32
    python -m experiments.benchmarks.tuned DATA [share/shares]

Both get `BUDGET` core-seconds, and the default a third arm with those of the tuning on top: all that was
spent counts. Judged as the rules of `strategies.py` are. Pieces, shares and raw predictions as there, in
results/tuned/.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import cifar10_small
from experiments.benchmarks.mixing import BUDGET, RESAMPLES, SCALE, SEEDS
from experiments.benchmarks.pieces import (
    Piece,
    differences,
    epoch_seconds,
    epochs_in,
    interval,
    select,
    share_of,
)
from experiments.benchmarks.results import FOLDER, write
from experiments.benchmarks.strategies import BASE, SEARCHED, judged, new_supernet
from nas.experiment import Experiment
from nas.phases.tune import RECIPE, with_settings
from nas.tasks import ImageClassification
from nas.training import Recipe

RAW = FOLDER / "tuned"
FOUND = Path("runs/cifar10_small-tune") / RECIPE
DEFAULT, TUNED, LONGER = "default", "tuned", "default, with the time of tuning"
ARMS = (DEFAULT, TUNED, LONGER)
PIECES = [(arm, seed) for seed in SEEDS for arm in ARMS]


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    experiment = cifar10_small.experiment(data)
    task = cifar10_small.cifar10(data).fewer(search=SEARCHED)
    RAW.mkdir(parents=True, exist_ok=True)
    if not (RAW / RECIPE).exists():
        shutil.copyfile(FOUND, RAW / RECIPE)
    recipes = recipes_of(experiment)
    arms = {arm: (lambda: new_supernet(task), recipe) for arm, recipe in recipes.items()}
    seconds = epoch_seconds(RAW / "seconds.json", arms, task)
    for arm, seed in share_of(PIECES, share):
        if not _file(arm, seed).exists():
            budget = BUDGET + (spent() if arm == LONGER else 0.0)
            kind = TUNED if arm == TUNED else DEFAULT
            recipe = replace(recipes[kind], epochs=epochs_in(budget, seconds[kind]))
            judged(_file(arm, seed), task, recipe, seed, arm)
    if not share:
        report(task)


def recipes_of(experiment: Experiment) -> dict[str, Recipe]:
    found = json.loads((RAW / RECIPE).read_text())
    tuned = with_settings(experiment, found["settings"]).training
    return {DEFAULT: BASE, TUNED: replace(tuned, device="cpu", threads=1)}


def spent() -> float:
    """Core-seconds of all configurations that were tried."""
    return float(sum(trial["core_seconds"] for trial in json.loads((RAW / RECIPE).read_text())["trials"]))


# --- what all of them say -------------------------------------------------------------------------


def report(task: ImageClassification) -> None:
    np.save(RAW / "labels.npy", task.labels[select(task)].astype(np.uint8))
    results = evaluated(read())
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")
    print(f"written to {write('tuned', results)}")


def read() -> dict[tuple[str, int], Piece]:
    labels = np.load(RAW / "labels.npy", allow_pickle=False)
    return {(a, s): Piece.read(_file(a, s), labels) for a, s in PIECES}


def evaluated(pieces: dict[tuple[str, int], Piece]) -> dict[str, Any]:
    """Every figure, from the raw predictions and recipe.json alone."""
    by_seed = {arm: [pieces[arm, s] for s in SEEDS] for arm in ARMS}
    found = json.loads((RAW / RECIPE).read_text())

    def volume(piece: Piece, counts: np.ndarray) -> float:
        return piece.hypervolume(SCALE, counts)

    return {
        "hypervolume on select": {a: [round(p.hypervolume(SCALE), 4) for p in by_seed[a]] for a in ARMS},
        "tuned - default": interval(differences(by_seed[TUNED], by_seed[DEFAULT], volume, RESAMPLES)),
        "tuned - default with the time of tuning": interval(
            differences(by_seed[TUNED], by_seed[LONGER], volume, RESAMPLES)
        ),
        "mean accuracy of the panel, %": {
            a: [round(float(p.accuracies("panel").mean()), 2) for p in by_seed[a]] for a in ARMS
        },
        "epochs": {a: by_seed[a][0].figures["epochs"] for a in ARMS},
        "core-seconds of training": {
            a: [round(p.figures["core_seconds"]["training"]) for p in by_seed[a]] for a in ARMS
        },
        "core-seconds of tuning": round(spent()),
        "configurations": len(found["trials"]),
        "settings": found["settings"],
    }


def _file(arm: str, seed: int) -> Path:
    return RAW / f"{arm.replace(',', '').replace(' ', '_')}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
