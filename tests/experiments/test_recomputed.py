"""Committed figures follow from committed raw predictions, and pages show them."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from experiments import cifar10_small
from experiments.benchmarks import (
    bits,
    hand_scaled,
    learning_rates,
    nested_bits,
    strategies,
    trust,
    tuned,
    verified,
)
from experiments.benchmarks.results import FOLDER

BENCHMARKS = {
    "bits": (bits, bits.PAGE),
    "nested_bits": (nested_bits, nested_bits.PAGE),
    "learning_rates": (learning_rates, strategies.PAGE),
    "tuned": (tuned, tuned.PAGE),
    "hand_scaled": (hand_scaled, hand_scaled.PAGE),
    "cifar10_small": (trust, trust.PAGE),
}

RUN = {"machine", "subnets", "settings"}
OF_THE_RUN = {name: {"machine"} for name in BENCHMARKS} | {"cifar10_small": RUN}  # what only the run can say


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_figure_can_be_had_again(name):
    benchmark, page = BENCHMARKS[name]
    written = json.loads((FOLDER / f"{name}.json").read_text())
    again = json.loads(json.dumps(again_of(benchmark)))
    assert again == {key: value for key, value in written.items() if key not in OF_THE_RUN[name]}
    assert benchmark.with_table(page.read_text(), written) == page.read_text()


def again_of(benchmark: ModuleType) -> dict:
    return benchmark.evaluated(benchmark.read())


def test_accuracies_of_a_verified_front_can_be_had_again():
    written = json.loads((FOLDER / "cifar10.json").read_text())
    found = json.loads(json.dumps(verified.evaluated("cifar10")))
    assert found == {name: written[name] for name in found}
    assert found["largest_accuracy"] > found["smallest_accuracy"]
    assert {f"{p['id']} {p['device']}" for p in written["front"]} == found["accuracy on test, %"].keys()


def test_the_best_learning_rate_is_that_of_the_experiment():
    volumes = json.loads((FOLDER / "learning_rates.json").read_text())[strategies.VOLUME]
    single = {arm: sum(found) for arm, found in volumes.items() if arm.startswith("single path")}
    best = max(single, key=single.__getitem__)
    assert best == learning_rates.label("single path", cifar10_small.LEARNING_RATE)
