"""Published models are points: the same parameters, answers and multiply-accumulates as the reference."""

from __future__ import annotations

from importlib import import_module

import pytest

from experiments.benchmarks.published_points import (
    LIVELY,
    RELATIVE,
    answer,
    compare,
    images,
    relative,
    skip_block,
)
from search_spaces.published import POINTS


@pytest.fixture(scope="module", params=sorted(POINTS))
def case(request):
    model = import_module(f"search_spaces.pretrained.{request.param}")
    point = POINTS[request.param]()
    parity, ours = compare(point, model)
    return model, point, parity, ours


def test_same_parameters(case):
    _, _, parity, _ = case
    assert parity.parameters == parity.reference_parameters


def test_same_answers(case):
    model, _, parity, _ = case
    assert set(parity.difference) == set(model.SIDES)
    assert max(parity.difference.values()) < RELATIVE


def test_same_work(case):
    _, _, parity, _ = case
    assert parity.mmacs == pytest.approx(parity.reference_mmacs, rel=0.01)


def test_every_block_matters(case):
    """Weights under which a block could be dropped unnoticed would prove nothing."""
    model, point, _, ours = case
    x = images(model.SIDES[0])[:1]
    whole = answer(ours, x)
    for s, stage in enumerate(point.stages):
        for b in range(len(stage.blocks)):
            try:
                skipped = skip_block(ours, s, b, x)
            except (RuntimeError, TypeError):  # it changes the width: it cannot be skipped
                continue
            assert relative(skipped, whole) > LIVELY, f"stages.{s}.blocks.{b}"


def test_both_sides_are_tried_where_the_reference_allows(case):
    model, *_ = case
    assert len(model.SIDES) == 2 or model.ONE_SIDE_BECAUSE


def test_no_point_is_left_out():
    assert len(POINTS) >= 15
