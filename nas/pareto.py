"""Pareto fronts: dominance, crowding and the hypervolume by which two searches are compared.

Costs are matrices (n, objectives) in which less is better everywhere, see `objectives.as_costs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymoo.indicators.hv import HV
from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function
from pymoo.util.nds.non_dominated_sorting import find_non_dominated

REFERENCE = 1.01
"""End of the hypervolume in every normalised axis: past the nadir, so that a front's ends count."""


@dataclass(frozen=True)
class Scale:
    """The box in which costs are compared: `ideal` becomes 0, `nadir` becomes 1 in each axis.

    Raises:
        ValueError: the two differ in length, or the ideal is not at least as good as the nadir.
    """

    ideal: Sequence[float] | np.ndarray
    nadir: Sequence[float] | np.ndarray

    def __post_init__(self) -> None:
        for name in ("ideal", "nadir"):  # plain tuples, so that scales compare and hash as values
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        pairs = zip(self.ideal, self.nadir, strict=False)
        if len(self.ideal) != len(self.nadir) or not all(low <= high for low, high in pairs):
            raise ValueError(
                f"`ideal <= nadir` must hold in every axis, but got (ideal={self.ideal}, nadir={self.nadir})."
            )

    @classmethod
    def around(cls, costs: np.ndarray) -> Scale:
        """The smallest box around `costs` (n, objectives)."""
        return cls(costs.min(axis=0), costs.max(axis=0))

    def normalise(self, costs: np.ndarray) -> np.ndarray:
        """`costs` (…, objectives) on this scale. An axis without extent is only shifted."""
        ideal, extent = np.asarray(self.ideal), np.subtract(self.nadir, self.ideal)
        normalised: np.ndarray = (costs - ideal) / np.where(extent > 0, extent, 1.0)
        return normalised


def nondominated(costs: np.ndarray) -> np.ndarray:
    """Which rows of `costs` (n, objectives) no row dominates, bool (n,). Equal rows all stay."""
    keep = np.zeros(len(costs), dtype=bool)
    keep[find_non_dominated(np.asarray(costs, dtype=float))] = True
    return keep


def crowding_distance(costs: np.ndarray) -> np.ndarray:
    """How alone each row of one front `costs` (n, objectives) stands, (n,); infinite at the ends.

    Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, section III-B;
    the mean, not the sum, over the objectives.
    """
    distance: np.ndarray = get_crowding_function("cd").do(costs)
    return distance


def hypervolume(costs: np.ndarray, scale: Scale) -> float:
    """Volume that `costs` (n, objectives) dominate between them and `REFERENCE`, on `scale`.

    At most `REFERENCE ** objectives`, unless a cost beats the ideal. Rows beyond the reference in
    any axis dominate nothing in the box and add nothing.
    """
    axes = len(scale.ideal)
    normalised = scale.normalise(np.asarray(costs, dtype=float).reshape(-1, axes))
    return float(HV(ref_point=np.full(axes, REFERENCE))(normalised))


class Front:
    """The non-dominated costs seen so far and their hypervolume, kept up to date one by one.

    Example:
        >>> front = Front(Scale(ideal=(0, 0), nadir=(1, 1)))
        >>> round(front.add((0.5, 0.5)), 4)
        0.2601
        >>> round(front.add((0.6, 0.6)), 4)  # dominated
        0.2601
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.costs = np.empty((0, len(scale.ideal)))
        self.hypervolume = 0.0

    def add(self, cost: Sequence[float] | np.ndarray) -> float:
        """The hypervolume once `cost` (objectives,) is known, too."""
        new = np.asarray(cost, dtype=float)
        if not (self.costs <= new).all(axis=1).any():
            beaten = (new <= self.costs).all(axis=1)
            self.costs = np.vstack([self.costs[~beaten], new])
            self.hypervolume = hypervolume(self.costs, self.scale)
        return self.hypervolume
