"""How far can a supernet's numbers be trusted? What `nas assess` found, with the raw predictions, for good.

    nas train cifar10_small --set data=DATA
    nas assess runs/cifar10_small
    python -m experiments.benchmarks.trust runs/cifar10_small

writes results/cifar10_small.json, and into results/cifar10_small.npz which images of *test* each subnet gets
right, inherited and alone: from that every figure follows.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.results import FOLDER, write
from nas.assessment import Assessed, with_intervals
from nas.phases.assess import raw_folder, read_right

RAW = FOLDER / "cifar10_small.npz"
ENDS = ("largest", "smallest")


def main(run: str) -> None:
    folder = Path(run)
    found = json.loads((folder / "assessment.json").read_text())
    collect(raw_folder(folder, found["recipe"]), found)
    results = evaluated() | {"subnets": found["subnets"], "settings": settings_of(folder, found)}
    shutil.copyfile(folder / "assessment.png", FOLDER / "cifar10_small.png")
    for name in KEYS:
        print(f"{name}: {results[name]}")
    print(f"written to {write('cifar10_small', results)}")


KEYS = {
    "tau_within_cost": "tau_within_cost",
    "tau_macs": "tau_macs_within_cost",
    "tau_ceiling": "tau_ceiling_within_cost",
    "top3_regret": "top3_regret",
    "median_gap": "median_gap",
}


def collect(folder: Path, found: dict[str, Any]) -> None:
    """All raw predictions of an assessment in one file, eight images to a byte."""

    def right(name: str) -> np.ndarray:
        return read_right(folder / f"{name}.npz")

    subnets, weights, seeds = found["subnets"], found["weights"], found["settings"]["seeds"]
    inherited = [right(f"{s['id']}-inherited-{weights}") for s in subnets]
    alone = [[right(f"{s['id']}-{seed}") for seed in range(seeds)] for s in subnets]
    ends = [right(f"{found['ends'][end]['id']}-inherited-{weights}") for end in ENDS]
    np.savez_compressed(
        RAW,
        images=np.array(len(inherited[0])),
        inherited=np.packbits(inherited, axis=-1),
        alone=np.packbits(alone, axis=-1),
        ends=np.packbits(ends, axis=-1),
        costs=np.array([s["mmacs"] for s in subnets]),
        bins=np.array([s["bin"] for s in subnets]),
        seen=np.array([s["seen"] for s in subnets]),
    )


def read() -> tuple[Assessed, np.ndarray]:
    """What was assessed, and which images the largest and the smallest subnet get right, (2, images)."""
    with np.load(RAW, allow_pickle=False) as data:
        images = int(data["images"])
        inherited, alone, ends = (
            np.unpackbits(data[name], axis=-1, count=images).astype(bool)
            for name in ("inherited", "alone", "ends")
        )
        return Assessed(data["costs"], data["bins"], inherited, alone, data["seen"]), ends


def evaluated() -> dict[str, Any]:
    """Every figure, from the raw predictions alone."""
    assessed, ends = read()
    figures = with_intervals(assessed)
    accuracies = {f"{end}_accuracy": 100 * float(right.mean()) for end, right in zip(ENDS, ends, strict=True)}
    return {name: figures[of]["value"] for name, of in KEYS.items()} | accuracies | {"figures": figures}


def settings_of(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Of the assessment, and the recipe of the supernet."""
    record = json.loads((folder / "experiment.json").read_text())
    return found["settings"] | {"training": record["settings"]["training"]}


if __name__ == "__main__":
    main(*sys.argv[1:])
