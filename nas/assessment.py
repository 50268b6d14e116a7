"""How far a subnet's inherited accuracy can be trusted: against subnets that were trained alone.

Arrays are by subnet, seed and image: `inherited` bool (n, images), `alone` bool (n, seeds, images), what is
right; `costs` (n,) in 10^6 multiply-accumulates; `bins` (n,), of which cost each subnet was drawn. Intervals
are 95 % ones of a bootstrap over images and, within bins, subnets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

WITHIN = 0.10  # pairs whose costs differ by no more are compared
TOP = 3
RESAMPLES = 1000


@dataclass(frozen=True)
class Assessed:
    """Subnets with what they inherit and what they reach alone."""

    costs: np.ndarray
    bins: np.ndarray
    inherited: np.ndarray
    alone: np.ndarray

    def resampled(self, rng: np.random.Generator) -> Assessed:
        """Images, and subnets within each bin, drawn with replacement."""
        images = rng.integers(self.inherited.shape[1], size=self.inherited.shape[1])
        groups = [np.flatnonzero(self.bins == b) for b in np.unique(self.bins)]
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        return Assessed(
            self.costs[rows],
            self.bins[rows],
            self.inherited[rows][:, images],
            self.alone[rows][:, :, images],
        )


def kendall(a: np.ndarray, b: np.ndarray, pairs: np.ndarray) -> float:
    """Kendall's τ_b (1945) over some pairs alone, given as bool (n, n); NaN where all of them are ties."""
    signs = [np.sign(x[:, None] - x[None, :])[pairs] for x in (a, b)]
    weight = np.sqrt(np.abs(signs[0]).sum() * np.abs(signs[1]).sum())
    return float((signs[0] * signs[1]).sum() / weight) if weight else float("nan")


def close(costs: np.ndarray) -> np.ndarray:
    """Pairs (i < j) whose costs differ by at most `WITHIN` of the smaller, bool (n, n)."""
    small = np.minimum(costs[:, None], costs[None, :])
    near = np.abs(costs[:, None] - costs[None, :]) <= WITHIN * small
    return np.triu(near, 1)


def every(costs: np.ndarray) -> np.ndarray:
    """All pairs (i < j)."""
    return np.triu(np.ones((len(costs), len(costs)), dtype=bool), 1)


def figures(assessed: Assessed) -> dict[str, float]:
    """All figures by name: rank correlations, regrets and gaps (in points)."""
    inherited = 100 * assessed.inherited.mean(1)
    alone = 100 * assessed.alone.mean(2)  # (n, seeds)
    found: dict[str, float] = {}
    for where, pairs in (("within_cost", close(assessed.costs)), ("all_pairs", every(assessed.costs))):
        by_seed = [kendall(inherited, alone[:, s], pairs) for s in range(alone.shape[1])]
        by_cost = [kendall(assessed.costs, alone[:, s], pairs) for s in range(alone.shape[1])]
        ceiling = [
            kendall(alone[:, s], alone[:, t], pairs) for s, t in combinations(range(alone.shape[1]), 2)
        ]
        found[f"tau_{where}"] = float(np.mean(by_seed))
        found[f"tau_macs_{where}"] = float(np.mean(by_cost))
        found[f"tau_ceiling_{where}"] = float(np.mean(ceiling)) if ceiling else float("nan")
    found["tau_above_macs"] = found["tau_within_cost"] - found["tau_macs_within_cost"]
    reached = alone.mean(1)
    regrets = []
    for b in np.unique(assessed.bins):
        inside = np.flatnonzero(assessed.bins == b)
        top = inside[np.argsort(-inherited[inside], kind="stable")[:TOP]]
        regrets.append(float(reached[inside].max() - reached[top].max()))
        found[f"top{TOP}_regret.{b}"] = regrets[-1]
        found[f"gap.{b}"] = float(np.median(reached[inside] - inherited[inside]))
    found[f"top{TOP}_regret"] = float(np.mean(regrets))
    found["median_gap"] = float(np.median(reached - inherited))
    return found


def with_intervals(
    assessed: Assessed, of: Callable[[Assessed], dict[str, float]] = figures
) -> dict[str, dict[str, Any]]:
    """Every figure with its interval."""
    rng = np.random.default_rng(0)
    found = of(assessed)
    drawn = [of(assessed.resampled(rng)) for _ in range(RESAMPLES)]
    results: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        values = np.array([d[name] for d in drawn if name in d])
        values = values[np.isfinite(values)]
        ends = np.percentile(values, (2.5, 97.5)).tolist() if len(values) else [float("nan")] * 2
        results[name] = {"value": value, "interval_95": ends}
    return results
