"""What is said of four searches on the same supernets, on made-up finalists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.benchmarks import bits
from experiments.benchmarks.bits import ARMS, FP32, INT8, JOINT, REFERENCE, THEN
from experiments.benchmarks.pieces import Piece
from nas.layers import Bits
from nas.pareto import Scale

IMAGES = 40
NETS, SEARCHES = (0, 1), (0, 1, 2)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bits, "SUPERNETS", NETS)
    monkeypatch.setattr(bits, "SEARCHES", SEARCHES)
    monkeypatch.setattr(bits, "_RUNS", [(n, s) for n in NETS for s in SEARCHES])
    monkeypatch.setattr(bits, "RESAMPLES", 50)
    monkeypatch.setattr(bits, "scale", lambda: Scale((-100, 0, 0), (0, 1, 100)))


def piece(right: list[int], ms: list[float], size: list[float]) -> Piece:
    """Finalists that get so many of the first images right; chosen by the same."""
    rows = np.array([np.arange(IMAGES) < n for n in right])
    figures = {"accuracy": [100 * n / IMAGES for n in right], "ms": ms, "size_bytes": size}
    return Piece(figures, {"front": rows})


BASE = piece([30, 20], [0.5, 0.25], [50, 25])


def of_all(**arms: Piece) -> dict:
    return {(arm, n, s): arms.get(arm, BASE) for arm in ARMS for n in NETS for s in SEARCHES} | {
        (REFERENCE, n, 0): piece([24], [0.8], [60]) for n in NETS
    }


def test_equal_searches_gain_nothing():
    for gain in bits.gained(of_all()).values():
        assert gain == {"mean": 0.0, "interval_95": [0.0, 0.0], "t_95": [0.0, 0.0]}


def test_what_is_faster_gains_against_all():
    faster = replace(BASE, figures=BASE.figures | {"ms": [0.25, 0.125]})
    gains = bits.gained(of_all(joint=faster))
    assert set(gains) == {THEN, INT8, FP32}
    wanted = bits.volume(faster) - bits.volume(BASE)
    for gain in gains.values():
        assert gain["mean"] == pytest.approx(wanted, abs=1e-4)
        assert 0 < gain["interval_95"][0] < gain["mean"] < gain["interval_95"][1]


def test_a_search_is_paired_with_that_on_the_same_supernet():
    """Supernets that differ, and searches that do not, leave nothing to be unsure of but images."""
    pieces = of_all()
    other = piece([39, 35], [0.5, 0.25], [50, 25])
    pieces |= {(arm, 1, s): other for arm in ARMS for s in SEARCHES}
    assert bits.gained(pieces)[INT8] == {"mean": 0.0, "interval_95": [0.0, 0.0], "t_95": [0.0, 0.0]}


def test_searches_together_have_the_finalists_of_all():
    pieces = of_all()
    pieces[JOINT, 1, 2] = piece([40], [0.5], [50])
    found = bits.together(pieces)
    assert found[JOINT][0] == round(bits.volume(BASE), 4)
    both = piece([40, 30, 20], [0.5, 0.5, 0.25], [50, 50, 25])
    assert found[JOINT][1] == round(bits.volume(both), 4) > found[INT8][1]


def test_students_interval_is_that_of_the_books():
    low, high = bits.students(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == (pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3), pytest.approx(2 + 2.4842, abs=1e-3))


def test_ratios_are_those_of_the_cheapest_that_is_as_accurate():
    found = bits.ratios(of_all(), "ms")  # the reference has 24 right: of the front, 30 at 0.5 ms
    assert (found["median"], found["searches with one"]) == (1.6, 6)
    assert found["mean points lost on select"] == -15.0
    assert found["chosen on half of select"]["median"] == 1.6
    none = {"searches with one": 0}
    assert bits.ratios(of_all(joint=piece([20], [0.1], [5])), "ms") == none | {
        "chosen on half of select": none
    }
    half = bits.searched_ratios(of_all(joint=piece([30, 20], [0.25, 0.125], [25, 5])), "size_bytes")
    assert (half["median"], half["quartiles"], half["models"], half["of"]) == (3.5, [2.0, 5.0], 12, 12)


def test_one_half_of_the_images_chooses_and_the_other_judges():
    lucky = piece([0], [0.1], [5])
    lucky.right["front"][0] = np.arange(IMAGES) % 2 == 0  # right on all that choose, wrong on all that judge
    half = bits.ratios(of_all(joint=lucky), "ms")["chosen on half of select"]
    assert half["median"] == 8.0
    assert half["mean points lost on select"] == 60.0  # 24 of 40: 12 of each 20


def test_arms_search_parts_of_one_space():
    whole = bits.space(JOINT)
    for arm in (INT8, FP32):
        for architecture in (bits.space(arm).largest(), bits.space(arm).smallest()):
            assert architecture in whole
    assert bits.space(INT8).largest().stages[0].blocks[0].ffn.bits == Bits(8, 8)
    small, large = bits.space(FP32).smallest(), bits.space(FP32).largest()
    free = bits.free_bits([small, large])
    drawn = [free.sample(np.random.default_rng(i)) for i in range(20)]
    assert all(a in whole for a in (*drawn, free.smallest(), free.largest()))
    assert {len(a.stages[0].blocks) for a in drawn} == {1, 3}
    assert small in free
