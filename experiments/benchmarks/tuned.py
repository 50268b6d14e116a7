"""Does tuning pay? The recipe that `nas tune` found against the default one, over three seeds, on CIFAR-10.

    nas tune cifar10_small --set data=DATA --samples 24
    python -m experiments.benchmarks.tuned DATA [share/shares]

Judged as the rules of `strategies.py` are, on as many core-seconds. When it was tuned, the default had the
learning rate that the rules of `strategies.py` are compared at; since `learning_rates.py` it has a higher
one. The pieces of both are theirs; trained here are the recipe that was found, and the default with the
core-seconds of the tuning on top: all that was spent counts. Pieces, shares and raw predictions as there, in
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
from experiments.benchmarks import learning_rates, strategies
from experiments.benchmarks.mixing import RESAMPLES, SCALE, SEEDS
from experiments.benchmarks.pieces import Piece, differences, epoch_seconds, interval, share_of
from experiments.benchmarks.results import FOLDER, between_marks, table, write
from experiments.benchmarks.strategies import BASE, PAGE, SEARCHED, judged, new_supernet
from nas.experiment import Experiment
from nas.phases.tune import RECIPE, with_settings
from nas.training import Recipe

RAW = FOLDER / "tuned"
FOUND = Path("runs/cifar10_small-tune") / RECIPE
RULE, RATE = "single path", cifar10_small.LEARNING_RATE
BEFORE, DEFAULT = f"default of then ({learning_rates.BEFORE})", f"default ({RATE})"
TUNED, LONGER = "tuned", f"default ({RATE}), with the time of tuning"
ARMS = (BEFORE, DEFAULT, TUNED, LONGER)
PIECES = [(arm, seed) for seed in SEEDS for arm in (TUNED, LONGER)]


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    experiment = cifar10_small.experiment(data)
    task = cifar10_small.cifar10(data).fewer(search=SEARCHED)
    RAW.mkdir(parents=True, exist_ok=True)
    if not (RAW / RECIPE).exists():
        shutil.copyfile(FOUND, RAW / RECIPE)
    elif FOUND.exists() and FOUND.read_bytes() != (RAW / RECIPE).read_bytes():
        print(f"{RAW / RECIPE} is used, and not {FOUND}, which differs: remove {RAW} to use that.")
    recipes = recipes_of(experiment)
    arms = {arm: (lambda: new_supernet(task), recipe) for arm, recipe in recipes.items()}
    seconds = epoch_seconds(RAW / "seconds.json", arms, task)
    defaults = [learning_rates.read()[learning_rates.label(RULE, RATE), seed].figures for seed in SEEDS]
    whole = defaults[0]["epochs"]
    took = float(np.mean([figures["core_seconds"]["training"] for figures in defaults]))
    epochs = {
        TUNED: round(whole * seconds[DEFAULT] / seconds[TUNED]),
        LONGER: round(whole * (took + spent()) / took),
    }
    for arm, seed in share_of(PIECES, share):
        if not _file(arm, seed).exists():
            recipe = replace(recipes[TUNED if arm == TUNED else DEFAULT], epochs=epochs[arm])
            judged(_file(arm, seed), task, recipe, seed, arm)
    if not share:
        report()


def recipes_of(experiment: Experiment) -> dict[str, Recipe]:
    found = json.loads((RAW / RECIPE).read_text())
    tuned = with_settings(experiment, found["settings"]).training
    return {DEFAULT: replace(BASE, learning_rate=RATE), TUNED: replace(tuned, device="cpu", threads=1)}


def spent() -> float:
    """Core-seconds of all configurations that were tried."""
    return float(sum(trial["core_seconds"] for trial in json.loads((RAW / RECIPE).read_text())["trials"]))


# --- what all of them say -------------------------------------------------------------------------


def report() -> None:
    results = evaluated(read())
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")
    print(f"written to {write('tuned', results)}")
    PAGE.write_text(with_table(PAGE.read_text(), results))


def with_table(page: str, results: dict[str, Any]) -> str:
    """The page of the documentation with the table of `results` between its marks."""
    rows = [
        (
            arm,
            results["epochs"][arm],
            f"{np.mean(results['core-seconds of training'][arm]):.0f}",
            f"{np.mean(results['mean accuracy of the panel, %'][arm]):.1f}",
            f"{np.mean(volumes):.3f} ({', '.join(f'{v:.3f}' for v in volumes)})",
        )
        for arm, volumes in results["hypervolume on select"].items()
    ]
    columns = ("recipe", "epochs", "core-seconds", "panel", "hypervolume (by seed)")
    return between_marks(page, "python -m experiments.benchmarks.tuned DATA", table(columns, rows))


def read() -> dict[tuple[str, int], Piece]:
    rates, labels = learning_rates.read(), strategies.labels()
    pieces = {(a, s): Piece.read(_file(a, s), labels) for a, s in PIECES}
    for arm, rate in ((BEFORE, learning_rates.BEFORE), (DEFAULT, RATE)):
        pieces |= {(arm, s): rates[learning_rates.label(RULE, rate), s] for s in SEEDS}
    return pieces


def evaluated(pieces: dict[tuple[str, int], Piece]) -> dict[str, Any]:
    """Every figure, from the raw predictions and recipe.json alone."""
    by_seed = {arm: [pieces[arm, s] for s in SEEDS] for arm in ARMS}
    found = json.loads((RAW / RECIPE).read_text())

    def volume(piece: Piece, counts: np.ndarray) -> float:
        return piece.hypervolume(SCALE, counts)

    return {
        "hypervolume on select": {a: [round(p.hypervolume(SCALE), 4) for p in by_seed[a]] for a in ARMS},
        **{
            f"{TUNED} - {arm}": interval(differences(by_seed[TUNED], by_seed[arm], volume, RESAMPLES))
            for arm in (BEFORE, DEFAULT, LONGER)
        },
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
    return RAW / f"{'tuned' if arm == TUNED else 'longer'}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
