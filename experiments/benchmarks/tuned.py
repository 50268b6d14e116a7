"""Does tuning pay? The recipe that `nas tune` found against the one it started from, three seeds, CIFAR-10.

    nas tune cifar10_small --set data=DATA --set training.learning_rate=0.003 --samples 24
    python -m experiments.benchmarks.tuned DATA [share/shares]

Tuned from the default of before `learning_rates.py`, which swept its learning rate: what a user has whose
default nobody swept. Judged as the rules of `strategies.py` are, on as many core-seconds; the pieces of both
defaults are theirs. Trained here are the recipe that was found, and the default that it started from with the
core-seconds of the tuning on top: all that was spent counts. Pieces, shares and raw predictions as there, in
results/tuned/; there too what the same tuning tried from today's default (`AGAIN`).
"""

from __future__ import annotations

import json
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
AGAIN = "recipe_from_the_swept.json"  # of `nas tune cifar10_small --set data=DATA --samples 24`
RULE, RATES = "single path", (learning_rates.BEFORE, cifar10_small.LEARNING_RATE)
BEFORE, SWEPT = f"default before ({RATES[0]})", f"default, its rate swept ({RATES[1]})"
TUNED, LONGER = "tuned from that", "default before, with the time of tuning"
ARMS = (BEFORE, TUNED, LONGER, SWEPT)
PIECES = [(arm, seed) for seed in SEEDS for arm in (TUNED, LONGER)]


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    experiment = cifar10_small.experiment(data)
    task = cifar10_small.cifar10(data).fewer(search=SEARCHED)
    RAW.mkdir(parents=True, exist_ok=True)
    if not (RAW / RECIPE).exists():
        keep(FOUND, RAW / RECIPE)
    elif FOUND.exists() and json.loads(FOUND.read_text())["trials"] != trials(RECIPE):
        print(f"{RAW / RECIPE} is used, and not {FOUND}, which differs: remove {RAW} to use that.")
    recipes = recipes_of(experiment)
    arms = {arm: (lambda: new_supernet(task), recipe) for arm, recipe in recipes.items()}
    seconds = epoch_seconds(RAW / "seconds.json", arms, task)
    whole = learning_rates.read()[learning_rates.label(RULE, RATES[0]), SEEDS[0]].figures["epochs"]
    took = whole * seconds[BEFORE]
    epochs = {TUNED: round(took / seconds[TUNED]), LONGER: round((took + spent(RECIPE)) / seconds[BEFORE])}
    for arm, seed in share_of(PIECES, share):
        if not _file(arm, seed).exists():
            recipe = replace(recipes[TUNED if arm == TUNED else BEFORE], epochs=epochs[arm])
            judged(_file(arm, seed), task, recipe, seed, arm)
    if not share:
        report()


def recipes_of(experiment: Experiment) -> dict[str, Recipe]:
    found = json.loads((RAW / RECIPE).read_text())
    tuned = with_settings(experiment, found["settings"]).training
    return {
        BEFORE: replace(BASE, learning_rate=RATES[0]),
        TUNED: replace(tuned, device="cpu", threads=1),
    }


def keep(found: Path, kept: Path) -> None:
    """Keeps a recipe, less what the caller had set: where the data lie."""
    recipe = json.loads(found.read_text())
    kept.write_text(json.dumps({k: v for k, v in recipe.items() if k != "set"}, indent=1) + "\n")


def trials(recipe: str) -> list[dict[str, Any]]:
    """All configurations that were tried."""
    tried: list[dict[str, Any]] = json.loads((RAW / recipe).read_text())["trials"]
    return tried


def spent(recipe: str) -> float:
    """Core-seconds of all of them."""
    return float(sum(trial["core_seconds"] for trial in trials(recipe)))


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
    for arm, rate in zip((BEFORE, SWEPT), RATES, strict=True):
        pieces |= {(arm, s): rates[learning_rates.label(RULE, rate), s] for s in SEEDS}
    return pieces


def evaluated(pieces: dict[tuple[str, int], Piece]) -> dict[str, Any]:
    """Every figure, from the raw predictions and recipe.json alone."""
    by_seed = {arm: [pieces[arm, s] for s in SEEDS] for arm in ARMS}

    def volume(piece: Piece, counts: np.ndarray) -> float:
        return piece.hypervolume(SCALE, counts)

    return {
        "hypervolume on select": {a: [round(p.hypervolume(SCALE), 4) for p in by_seed[a]] for a in ARMS},
        **{
            f"{TUNED} - {arm}": interval(differences(by_seed[TUNED], by_seed[arm], volume, RESAMPLES))
            for arm in ARMS
            if arm != TUNED
        },
        "mean accuracy of the panel, %": {
            a: [round(float(p.accuracies("panel").mean()), 2) for p in by_seed[a]] for a in ARMS
        },
        "epochs": {a: by_seed[a][0].figures["epochs"] for a in ARMS},
        "core-seconds of training": {
            a: [round(p.figures["core_seconds"]["training"]) for p in by_seed[a]] for a in ARMS
        },
        "tuning": tuning(RECIPE),
        "tuning from the swept default": tuning(AGAIN),
    }


def tuning(recipe: str) -> dict[str, Any]:
    """What was found and tried, at which price. Scores: mean accuracy of a panel on *search*, in %."""
    found, tried = json.loads((RAW / recipe).read_text()), trials(recipe)
    default = next(trial for trial in tried if trial["settings"] == found["default"])
    return {
        "configurations": len(tried),
        "core-seconds": round(spent(recipe)),
        "settings": found["settings"],
        "score": round(found["score"], 2),
        "score of the default": round(default["score"], 2),
    }


def _file(arm: str, seed: int) -> Path:
    return RAW / f"{'tuned' if arm == TUNED else 'longer'}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
