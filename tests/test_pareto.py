"""Pareto fronts against definitions written out and against volumes known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nas.pareto import REFERENCE, Front, Scale, crowding_distance, hypervolume, nondominated

UNIT = Scale(ideal=(0, 0), nadir=(1, 1))


@pytest.fixture(params=[2, 3])
def costs(request: pytest.FixtureRequest) -> np.ndarray:
    """Costs on a coarse grid, so that there are ties and duplicates."""
    return np.random.default_rng(0).integers(0, 6, (80, request.param)) / 5


def test_nondominated_is_the_definition(costs: np.ndarray) -> None:
    def dominates(a: np.ndarray, b: np.ndarray) -> bool:
        return bool((a <= b).all() and (a < b).any())

    expected = [not any(dominates(a, b) for a in costs) for b in costs]
    assert nondominated(costs).tolist() == expected


def test_duplicates_on_the_front_all_stay() -> None:
    costs = np.array([[0, 1], [0, 1], [1, 0], [1, 1]])
    assert nondominated(costs).tolist() == [True, True, True, False]


def test_nothing_has_no_front() -> None:
    assert nondominated(np.empty((0, 2))).shape == (0,)
    assert hypervolume(np.empty((0, 2)), UNIT) == 0


def test_crowding_distance_by_hand() -> None:
    distance = crowding_distance(np.array([[0.0, 4.0], [1.0, 2.0], [3.0, 1.0], [4.0, 0.0]]))
    # mean over objectives of (next − previous) / extent
    np.testing.assert_allclose(distance, [np.inf, (3 / 4 + 3 / 4) / 2, (3 / 4 + 2 / 4) / 2, np.inf])


def test_hypervolume_by_hand() -> None:
    scale = Scale(ideal=(10, -100), nadir=(20, -50))
    costs = np.array([[15, -100], [10, -75]])  # (0.5, 0) and (0, 0.5) on that scale
    assert hypervolume(costs, scale) == pytest.approx(REFERENCE**2 - 0.5**2)


def test_costs_beyond_the_reference_are_left_out() -> None:
    inside = np.array([[0.5, 0.5]])
    beyond = np.array([[-3.0, REFERENCE], [0.2, 1.5]])
    assert hypervolume(np.vstack([inside, beyond]), UNIT) == hypervolume(inside, UNIT)
    assert hypervolume(beyond, UNIT) == 0


def test_the_nadir_itself_counts() -> None:
    assert hypervolume(np.array([[0.0, 1.0]]), UNIT) > 0


def test_an_incremental_front_agrees_with_the_whole(costs: np.ndarray) -> None:
    scale = Scale(ideal=np.zeros(costs.shape[1]), nadir=np.ones(costs.shape[1]))
    front = Front(scale)
    for n, cost in enumerate(costs, start=1):
        assert front.add(cost) == pytest.approx(hypervolume(costs[:n], scale))
    kept = {tuple(cost) for cost in costs[nondominated(costs)]}
    assert {tuple(cost) for cost in front.costs} == kept
    assert len(front.costs) == len(kept)


def test_scales_are_values() -> None:
    assert Scale(np.zeros(2), np.ones(2)) == UNIT
    assert hash(Scale([0, 0], [1, 1])) == hash(UNIT)


def test_a_scale_around_costs_maps_them_into_the_unit_box(costs: np.ndarray) -> None:
    shifted = 7 * costs - 3
    np.testing.assert_allclose(Scale.around(shifted).normalise(shifted), costs, atol=1e-12)


def test_an_axis_without_extent_is_only_shifted() -> None:
    scale = Scale(ideal=(0, 5), nadir=(2, 5))
    np.testing.assert_array_equal(scale.normalise(np.array([[1.0, 6.0]])), [[0.5, 1.0]])


@pytest.mark.parametrize("nadir", [(1, -1), (1,), (1, float("nan"))])
def test_a_scale_must_have_extent(nadir: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ideal <= nadir"):
        Scale(ideal=(0, 0), nadir=nadir)
