"""Subnets to assess a supernet by, of some costs: such as its training takes, and such as it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nas.architecture import architecture_id
from nas.devices.costs import macs
from nas.errors import RunError, SpaceError
from nas.experiment import Experiment
from nas.space import EmptyRange, Within
from nas.training import architectures_of
from nas.training.streams import RULES, reproducible

DRAWS = 200  # in a bin
MOST_BINS = 100
STEPS = 1000  # whose subnets are looked at where a rule takes few of all there are


@dataclass(frozen=True)
class Assessment:
    """What is assessed.

    Attributes:
        bins: of cost, evenly spaced in its logarithm between the smallest and the largest subnet's.
        width: half of a bin, as a share of its middle.
        subnets: drawn in each bin.
        seeds: trainings of each.
        unseen: drawn in each bin beside them, of those that no step of the training takes: by its rule, or
            by `training.withheld`.
    """

    bins: int = 3
    width: float = 0.05
    subnets: int = 10
    seeds: int = 2
    unseen: int = 0

    def __post_init__(self) -> None:
        for name, least in (("bins", 1), ("subnets", 2), ("seeds", 1), ("unseen", 0)):
            if getattr(self, name) < least:
                raise RunError(f"`--{name}` must be {least} or more: got {getattr(self, name)}.")
        if self.bins > MOST_BINS:
            raise RunError(f"`--bins` must be {MOST_BINS} or fewer: got {self.bins}.")
        if self.unseen == 1:
            raise RunError("`--unseen` must be 0, or 2 or more to be compared among themselves: got 1.")
        if not 0 < self.width < 1:
            raise RunError(f"`--width` must be a share between 0 and 1: got {self.width}.")


@dataclass(frozen=True)
class Chosen:
    """A subnet of a bin; `seen`: whether a step of the training may have taken it."""

    architecture: Any
    cost: float
    bin: int
    seen: bool

    @property
    def id(self) -> str:
        return architecture_id(self.architecture)


def choose(experiment: Experiment, what: Assessment) -> list[Chosen]:
    """The subnets that are assessed, the same at each call.

    Raises:
        RunError: bins overlap.
        SpaceError: a bin holds less than two subnets of a kind that is asked for.
    """
    space, features = experiment.space, experiment.costs()

    def cost(genes: np.ndarray) -> np.ndarray:
        return macs(features(genes))

    ends = np.array([space.encode(a) for a in (space.smallest(), space.largest())])
    least, most = sorted(cost(ends).tolist())  # fewest options may be dearer: small patches
    if not least > 0:
        raise RunError(
            f"Costs must be above 0 to be compared by: `costs` gives the smallest and the largest subnet "
            f"{least:.3g} and {most:.3g} MMACs. Count what they compute."
        )
    middles = np.geomspace(least, most, what.bins + 2)[1:-1].tolist()
    if what.bins > 1 and middles[0] * (1 + what.width) >= middles[1] * (1 - what.width):
        raise RunError(
            f"Bins of costs must not overlap: {what.bins} of ±{100 * what.width:g} %, evenly between the "
            f"smallest and largest subnet ({least:.3g} and {most:.3g} MMACs), do. Lower --bins or --width."
        )
    bins = [
        _Bin(experiment, cost, m * (1 - what.width), m * (1 + what.width), b) for b, m in enumerate(middles)
    ]
    return [chosen for each in bins for chosen in each.chosen(what)]


def small_bins(chosen: Sequence[Chosen], what: Assessment) -> Iterator[str]:
    """A line for each bin that holds fewer than were asked for."""
    for number in range(what.bins):
        for seen, asked in ((True, what.subnets), (False, what.unseen)):
            costs = [c.cost for c in chosen if (c.bin, c.seen) == (number, seen)]
            if len(costs) < asked:
                kind = "subnets" if seen else "subnets that training leaves out"
                yield (
                    f"The bin around {np.mean(costs):.3g} MMACs holds {len(costs)} {kind}, of {asked} asked "
                    f"for: a greater --width takes in more."
                )


@dataclass(frozen=True)
class _Bin:
    """Subnets from `low` to `high` MMACs."""

    experiment: Experiment
    cost: Callable[[np.ndarray], np.ndarray]
    low: float
    high: float
    number: int

    def chosen(self, what: Assessment) -> Iterator[Chosen]:
        seen = self._first(what.subnets, self._seen())
        if len(seen) < 2:
            raise SpaceError(
                f"A bin of costs must hold 2 subnets or more that the training takes: {self.low:.3g} to "
                f"{self.high:.3g} MMACs holds {len(seen)}. Raise --width, lower --bins, or train by a rule "
                f"that takes more than {type(self.experiment.training.subnets).__name__}."
            )
        unseen = self._first(what.unseen, self._unseen())
        if what.unseen and len(unseen) < 2:
            raise SpaceError(
                f"`--unseen` must have subnets that the training leaves out, but {self.low:.3g} to "
                f"{self.high:.3g} MMACs holds {len(unseen)}. A rule such as Nested leaves some out, or "
                f"training.withheld does; where one does already, raise --width or lower --bins."
            )
        for architecture in (*seen, *unseen):
            yield Chosen(
                architecture, float(self._costs([architecture])[0]), self.number, architecture in seen
            )

    def _first(self, count: int, drawn: Iterator[Any]) -> list[Any]:
        """The first `count` different ones."""
        found: dict[Any, None] = {}
        while len(found) < count and (architecture := next(drawn, None)) is not None:
            found[architecture] = None
        return list(found)

    def _seen(self) -> Iterator[Any]:
        """Drawn evenly within the bin; then, where few of those are trained, as the training draws."""
        recipe, space = self.experiment.training, self.experiment.space
        trained = recipe.trained(space)
        cost = self.cost if trained is space else lambda genes: self._costs(map(trained.decode, genes))
        within = Within(trained, cost, self.low, self.high)
        for architecture in self._drawn(within):
            if recipe.subnets.trains(trained, architecture):
                yield architecture
        for step in range(STEPS):
            with reproducible(RULES, self.number, step, 0, torch.device("cpu")):
                drawn = architectures_of(recipe.subnets, trained, self.number, step, step / STEPS)
            inside = np.abs(self._costs(drawn) - (self.low + self.high) / 2) <= (self.high - self.low) / 2
            yield from (a for a, fits in zip(drawn, inside, strict=True) if fits)

    def _unseen(self) -> Iterator[Any]:
        recipe, space = self.experiment.training, self.experiment.space
        trained = recipe.trained(space)
        for architecture in self._drawn(Within(space, self.cost, self.low, self.high)):
            if not (architecture in trained and recipe.subnets.trains(trained, architecture)):
                yield architecture

    def _drawn(self, within: Within) -> Iterator[Any]:
        rng = np.random.default_rng(self.number)
        with suppress(EmptyRange):  # what a bin holds too few of is said by its own numbers
            for _ in range(DRAWS):
                yield within.sample(rng)

    def _costs(self, architectures: Iterable[Any]) -> np.ndarray:
        return self.cost(np.array([self.experiment.space.encode(a) for a in architectures]))
