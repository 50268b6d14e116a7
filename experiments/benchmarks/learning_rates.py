"""Do the rules of subnets differ, or the learning rates that suit them? On CIFAR-10, at equal core-seconds.

    python -m experiments.benchmarks.learning_rates DATA [share/shares]

`strategies.py` trains all rules at the learning rate that was the default then, 0.003. Here those of
`RATES` are trained at others, for as many epochs, and judged in the same way; that comparison's pieces stand
beside them. Pieces, shares and raw predictions as there, in results/learning_rates/.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments import cifar10_small
from experiments.benchmarks import strategies
from experiments.benchmarks.mixing import BUDGET, SEEDS
from experiments.benchmarks.pieces import Piece, epochs_in, share_of
from experiments.benchmarks.results import FOLDER, between_marks, write
from experiments.benchmarks.strategies import SEARCHED, judged, rules_table
from nas.training import Recipe

RAW = FOLDER / "learning_rates"
RATES = {
    "single path": (0.006, 0.012, 0.024),
    "one batch": (0.006, 0.012, 0.024),
    "cost-balanced": (0.012,),
    "progressive": (0.012,),
    "sandwich, labels alone": (0.012,),
}
PIECES = [(rule, rate, seed) for seed in SEEDS for rule, rates in RATES.items() for rate in rates]
BEFORE = 0.003  # of the pieces of strategies.py


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    task = cifar10_small.cifar10(data).fewer(search=SEARCHED)
    seconds = json.loads((strategies.RAW / "seconds.json").read_text())
    RAW.mkdir(parents=True, exist_ok=True)
    for rule, rate, seed in share_of(PIECES, share):
        if not _file(rule, rate, seed).exists():
            epochs = epochs_in(BUDGET, seconds[rule])
            judged(_file(rule, rate, seed), task, recipe(rule, rate, epochs), seed, label(rule, rate))
    if not share:
        report()


def recipe(rule: str, rate: float, epochs: int) -> Recipe:
    return replace(strategies.ARMS[rule], learning_rate=rate, epochs=epochs)


def label(rule: str, rate: float) -> str:
    return f"{rule}, {rate}"


# --- what all of them say -------------------------------------------------------------------------


def report() -> None:
    results = evaluated(read())
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")
    print(f"written to {write('learning_rates', results)}")
    strategies.PAGE.write_text(with_table(strategies.PAGE.read_text(), results))


def with_table(page: str, results: dict[str, Any]) -> str:
    """The page of the documentation with the table of `results` between its marks."""
    return between_marks(
        page, "python -m experiments.benchmarks.learning_rates DATA", rules_table("rule, rate", results)
    )


def read() -> dict[tuple[str, int], Piece]:
    """The pieces that there are, with those of the same rules at the rate of before."""
    known = strategies.read()
    labels = strategies.labels()
    pieces = {}
    for seed in SEEDS:
        for rule, rates in RATES.items():
            if (rule, seed) in known:
                pieces[label(rule, BEFORE), seed] = known[rule, seed]
            for rate in rates:
                if _file(rule, rate, seed).exists():
                    pieces[label(rule, rate), seed] = Piece.read(_file(rule, rate, seed), labels)
    return pieces


def evaluated(pieces: dict[tuple[str, int], Piece]) -> dict[str, Any]:
    """Every figure, from the raw predictions alone."""
    return strategies.evaluated(pieces)


def _file(rule: str, rate: float, seed: int) -> Path:
    return RAW / f"{rule.replace(',', '').replace(' ', '_')}-{rate}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
