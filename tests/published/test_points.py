"""Published models are points: the same parameters, answers and multiply-accumulates as the reference."""

from __future__ import annotations

from importlib import import_module

import pytest

from experiments.benchmarks.published_points import LIVELY, RELATIVE, answer, changes, compare, images
from search_spaces.published import POINTS

NO_REFERENCE = 0  # points that may stand there without one
RECORDED = {"cswin_tiny", "spectformer_small"}  # their references are in no package


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
    sides = {*model.SIDES, *getattr(model, "BUILT_FOR", ())}
    assert set(parity.difference) == sides
    assert len(sides) >= 2 or model.ONE_SIDE_BECAUSE
    assert max(parity.difference.values()) < RELATIVE


def test_same_work(case):
    """By two counters, ours here and PyTorch's there."""
    _, _, parity, _ = case
    assert parity.mmacs == pytest.approx(parity.reference_mmacs, rel=0.01)


def test_every_block_matters(case):
    """Weights under which a block could be dropped unnoticed would prove nothing."""
    model, point, _, ours = case
    found = changes(ours, images(model.SIDES[0])[:1])
    assert len(found) == sum(len(stage.blocks) for stage in point.stages)
    assert min(found.values()) > LIVELY, min(found, key=found.get)


def test_the_reference_is_not_ours(case):
    """It is a class of another package, or its recorded answers say of which commit and how to repeat it."""
    model, _, parity, _ = case
    if hasattr(model, "GOLDEN"):
        assert "github.com/" in parity.implementation
        assert "commit" in parity.implementation
        assert "python -m experiments.benchmarks.golden_answers" in parity.implementation
    else:
        assert parity.implementation.startswith(("timm.", "transformers."))


def test_one_side_is_for_those_that_refuse_others(case):
    """Smaller ones and larger ones."""
    model, *_ = case
    if hasattr(model, "ONE_SIDE_BECAUSE") and not hasattr(model, "GOLDEN"):
        for side in (192, 256, 448):
            with pytest.raises((RuntimeError, AssertionError)):
                answer(model.reference().eval(), images(side)[:1])


def test_no_point_is_left_out():
    models = {name: import_module(f"search_spaces.pretrained.{name}") for name in POINTS}
    without = {n for n, m in models.items() if not (hasattr(m, "reference") or hasattr(m, "GOLDEN"))}
    assert len(POINTS) >= 15
    assert len(without) <= NO_REFERENCE
    assert {n for n, m in models.items() if hasattr(m, "GOLDEN")} == RECORDED
