"""Committed figures follow from committed raw predictions, and pages show them."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from experiments.benchmarks import nested_bits
from experiments.benchmarks.results import FOLDER

BENCHMARKS = {
    "nested_bits": (nested_bits, nested_bits.PAGE),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_figure_can_be_had_again(name):
    benchmark, page = BENCHMARKS[name]
    written = json.loads((FOLDER / f"{name}.json").read_text())
    again = json.loads(json.dumps(again_of(benchmark)))
    assert again == {key: value for key, value in written.items() if key != "machine"}
    assert benchmark.with_table(page.read_text(), written) == page.read_text()


def again_of(benchmark: ModuleType) -> dict:
    return benchmark.evaluated(benchmark.read())
