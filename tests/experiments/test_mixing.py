"""The committed figures on mixing follow from the committed predictions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.benchmarks import mixing
from experiments.benchmarks.pieces import Piece, interval

RESULTS = json.loads((mixing.FOLDER / "mixing.json").read_text())


def test_every_figure_can_be_had_again(monkeypatch):
    monkeypatch.setattr(mixing, "RESAMPLES", 20)
    again = mixing.evaluated(mixing.read())
    assert again.keys() == RESULTS.keys() - {"machine"}
    for name, value in again.items():
        found = RESULTS[name]
        if isinstance(value, dict):
            assert value.keys() == found.keys()
        if name.startswith(("mixed -", "one more -", "what")):  # intervals have fewer resamples here
            for one, other in zip(means(value), means(found), strict=True):
                assert one == pytest.approx(other)
        else:
            assert json.loads(json.dumps(value)) == found


def means(value: dict) -> list[float]:
    return [value["mean"]] if "mean" in value else [inner["mean"] for inner in value.values()]


def test_a_bootstrap_covers_what_it_was_drawn_from(monkeypatch):
    """Two arms, one right 2 points more often: the interval holds the difference and has about its width."""
    rng = np.random.default_rng(0)
    n = 2000

    def piece(p: float) -> Piece:
        return Piece({}, {"front": np.zeros((1, n), bool), "space": rng.random((4, n)) < p})

    pieces = {(arm, s): piece(p) for arm, p in (("a", 0.52), ("b", 0.50)) for s in mixing.SEEDS}
    monkeypatch.setattr(mixing, "RESAMPLES", 400)
    found = interval(mixing._points(pieces, "a", "b", "space"))
    low, high = found["interval_95"]
    assert low < found["mean"] < high
    assert low < 2 < high
    expected = 2 * 1.96 * 100 * (2 * 0.25 / (4 * n * 3)) ** 0.5  # independent images, subnets and seeds
    assert 0.7 * expected < high - low < 2 * expected
