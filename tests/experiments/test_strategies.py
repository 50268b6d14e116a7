"""The committed figures on rules of subnets follow from the committed predictions, and so does the page."""

from __future__ import annotations

import json

from experiments.benchmarks import strategies
from experiments.benchmarks.strategies import FOLDER, PAGE, PIECES, evaluated, read, with_table
from nas.training import Recipe

RESULTS = json.loads((FOLDER / "strategies.json").read_text())


def test_every_figure_can_be_had_again():
    pieces = read()
    assert set(pieces) == set(PIECES)
    again = json.loads(json.dumps(evaluated(pieces)))
    assert again == {name: value for name, value in RESULTS.items() if name != "machine"}


def test_the_page_shows_them():
    assert with_table(PAGE.read_text(), RESULTS) == PAGE.read_text()


def test_the_best_rule_is_the_default():
    volumes = {arm: sum(by_seed) for arm, by_seed in RESULTS[strategies.VOLUME].items()}
    best = max(volumes, key=volumes.__getitem__)
    assert strategies.ARMS[best].subnets == Recipe().subnets


def test_all_rules_got_the_same_core_seconds():
    seconds = RESULTS["core-seconds of training"]
    budget = RESULTS["settings"]["budget_core_seconds"]
    for by_seed in seconds.values():
        assert budget < sum(by_seed) / len(by_seed) < 1.35 * budget
