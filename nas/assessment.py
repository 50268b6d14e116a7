"""How far a subnet's inherited accuracy can be trusted: against subnets that were trained alone.

Arrays are by subnet, seed and image: `inherited` bool (n, images), `alone` bool (n, seeds, images), what is
right; `costs` (n,) in 10^6 multiply-accumulates; `bins` (n,), of which cost each subnet was drawn; `seen`
bool (n,), whether a step may have trained it. Intervals are 95 % ones of a bootstrap over images and, within
bins, subnets; since a resample holds some subnets twice, those of τ lie low and those of regrets high.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    seen: np.ndarray

    def of(self, rows: np.ndarray) -> Assessed:
        """Some subnets, given by number or as bool (n,)."""
        return Assessed(*(values[rows] for values in vars(self).values()))

    def resampled(self, rng: np.random.Generator) -> Assessed:
        """Images, and subnets within each bin, drawn with replacement."""
        images = rng.integers(self.inherited.shape[1], size=self.inherited.shape[1])
        kinds = 2 * self.bins + self.seen
        groups = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
        drawn = self.of(np.concatenate([rng.choice(group, len(group)) for group in groups]))
        return replace(drawn, inherited=drawn.inherited[:, images], alone=drawn.alone[:, :, images])


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
    """All figures by name: rank correlations, regrets and gaps (in points), of the subnets that were seen in
    training; then those of the unseen ones, and how far these lie off the curve of the others."""
    found = _figures(assessed.of(assessed.seen))
    if assessed.seen.all():
        return found
    found |= {f"unseen.{name}": value for name, value in _figures(assessed.of(~assessed.seen)).items()}
    return found | {"unseen_off_curve": _off_curve(assessed)}


def _off_curve(assessed: Assessed) -> float:
    """By how many points more the unseen subnets inherit than the others of their bins, the mean over bins:
    0 where they lie on the curve of accuracy over cost (MatFormer, Devvrit et al., 2023, §3.3)."""
    inherited = 100 * assessed.inherited.mean(1)
    differences = []
    for b in np.unique(assessed.bins):
        inside = assessed.bins == b
        seen, unseen = (inherited[inside & which] for which in (assessed.seen, ~assessed.seen))
        differences.append(unseen.mean() - seen.mean())
    return float(np.mean(differences))


def _figures(assessed: Assessed) -> dict[str, float]:
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
    bins = {int(b): assessed.bins == b for b in np.unique(assessed.bins)}
    regrets = {b: _regret(reached[inside], inherited[inside]) for b, inside in bins.items()}
    for b, inside in bins.items():
        found[f"top{TOP}_regret.{b}"] = regrets[b]
        found[f"gap.{b}"] = float(np.median(reached[inside] - inherited[inside]))
    found[f"top{TOP}_regret"] = float(np.mean(list(regrets.values())))
    by_cost = [_regret(reached[inside], assessed.costs[inside]) for inside in bins.values()]
    found[f"top{TOP}_regret_macs"] = float(np.mean(by_cost))
    found[f"top{TOP}_regret_random"] = float(np.mean([_regret_of_chance(reached[i]) for i in bins.values()]))
    found["median_gap"] = float(np.median(reached - inherited))
    return found


def _regret(reached: np.ndarray, by: np.ndarray) -> float:
    """What the best of the first `TOP`, in the order of `by`, lacks of the best of all; NaN where these are
    all."""
    top = np.argsort(-by, kind="stable")[:TOP]
    return float(reached.max() - reached[top].max()) if len(reached) > TOP else float("nan")


def _regret_of_chance(reached: np.ndarray) -> float:
    """What that is on average for `TOP` that are drawn."""
    draws = math.comb(len(reached), TOP)
    if len(reached) <= TOP:
        return float("nan")
    best = sum(math.comb(i, TOP - 1) * value for i, value in enumerate(np.sort(reached).tolist()))
    return float(reached.max()) - best / draws


def with_intervals(
    assessed: Assessed, of: Callable[[Assessed], dict[str, float]] = figures
) -> dict[str, dict[str, Any]]:
    """Every figure with its interval; None where there is none, such as the rank of ties."""
    rng = np.random.default_rng(0)
    found = of(assessed)
    drawn = [of(assessed.resampled(rng)) for _ in range(RESAMPLES)]
    results: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        values = np.array([d[name] for d in drawn if name in d])
        values = values[np.isfinite(values)]
        ends = np.percentile(values, (2.5, 97.5)).tolist() if len(values) else [None, None]
        results[name] = {"value": value if np.isfinite(value) else None, "interval_95": ends}
    return results
