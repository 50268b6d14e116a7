"""Which subnets a training step trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np

from nas.annotations import require_types
from nas.errors import RunError, SpaceError, errors_of_users
from nas.space import Between, Repeat, Space, Within

Costs = Callable[[np.ndarray], np.ndarray]
"""Of genes (n, genes): what they cost, (n,)."""
POOL = 1024  # architectures that are drawn to learn what the space costs
LEAST = 8  # members of a bin below which more are looked for
MOST_BINS = 32  # each that few of those have is looked for at length
STEPS = 4  # of the walk from a member of a bin
INSIDE = "training.subnets."


class Subnets(ABC):
    """A rule: the architectures of a step, the same for the same (seed, step).

    Attributes:
        teaches: whether the first of them is the largest there is, and may teach the others.
        shares_batch: whether each of them gets a share of the batch of its own, and all go through one
            backward pass; else each gets all of the batch.
    """

    teaches: ClassVar[bool] = False
    shares_batch: ClassVar[bool] = False

    @abstractmethod
    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        """The architectures of a step; `progress` is the share of the training that is over, 0 … 1."""

    def trains(self, space: Space, architecture: Any) -> bool:
        """Whether some step may train `architecture`, a member of `space`."""
        return True


def architectures_of(rule: Subnets, space: Space, seed: int, step: int, progress: float) -> list[Any]:
    """What `rule` gives for a step.

    Raises:
        RunError: it gives no architectures of the space, or fails.
    """
    name = type(rule).__name__
    with errors_of_users(lambda: f"`at` of {name} must give the architectures of a step, but at step {step}"):
        drawn = rule.at(space, seed, step, progress)
    if (
        not isinstance(drawn, (list, tuple))
        or not drawn
        or not all(is_dataclass(a) and not isinstance(a, type) for a in drawn)
    ):
        raise RunError(
            f"`at` of {name} must give a list of architectures, one or more: got {drawn!r} at step {step}."
        )
    if not type(rule).__module__.startswith("nas."):  # ours keep to the space: to ask costs time
        _require_members(rule, space, drawn, step)
    return list(drawn)


def _require_members(rule: Subnets, space: Space, drawn: Sequence[Any], step: int) -> None:
    name = type(rule).__name__
    for architecture in drawn:
        try:
            space.check(architecture)
        except SpaceError as error:
            raise RunError(
                f"`at` of {name} must give architectures of the space that is trained, but at step {step} "
                f"one is not: {error}"
            ) from error
    if rule.teaches and drawn[0] != space.largest():
        raise RunError(
            f"`at` of {name}, which has `teaches = True`, must begin with the largest architecture: got "
            f"{drawn[0]!r} at step {step}. Begin with space.largest(), or leave `teaches` out."
        )


@dataclass(frozen=True)
class Only(Subnets):
    """One architecture and no other."""

    architecture: Any

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        return [self.architecture]

    def trains(self, space: Space, architecture: Any) -> bool:
        return bool(architecture == self.architecture)


@dataclass(frozen=True)
class SinglePath(Subnets):
    """One subnet, drawn anew (single path one-shot, Guo et al., 2020, §3.2; AutoFormer, Chen et al., 2021,
    §3.3)."""

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        return [space.sample(_rng(seed, step))]


@dataclass(frozen=True)
class Sandwich(Subnets):
    """The largest, the smallest and `random` subnets drawn anew (Yu & Huang, 2019, §3.2; BigNAS, Yu et al.,
    2020, §3.2).

    Attributes:
        smallest: whether the smallest is among them. Scala (Zhang et al., 2024) reports that always training
            it hurts the others.
    """

    teaches = True

    random: int = 2
    smallest: bool = True

    def __post_init__(self) -> None:
        _require_count("random", self.random, 0)
        require_types(self, INSIDE)

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        rng = _rng(seed, step)
        drawn = [space.sample(rng) for _ in range(self.random)]
        return [space.largest(), *([space.smallest()] if self.smallest else []), *drawn]


@dataclass(frozen=True)
class Nested(Subnets):
    """All granularities of a choice together: one subnet for each, in which every gene of that name has it
    (the joint loss of MatFormer, Devvrit et al., 2023, §3.2, eq. 1, with equal weights).

    Attributes:
        gene: the field whose choices they are: of a `repeat`, those among its entries, or where there are
            none, its length, which is also called ``len(blocks)``.
        rest: all other choices: "largest", as in MatFormer, or "random", drawn once per step.
    """

    gene: str = "ratio"
    rest: Literal["largest", "random"] = "largest"

    def __post_init__(self) -> None:
        if self.rest not in ("largest", "random"):
            raise RunError(f"`training.subnets.rest` must be 'largest' or 'random': got {self.rest!r}.")
        require_types(self, INSIDE)

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        largest = self.rest == "largest"
        genes = space.encode(space.largest()) if largest else space.sample_genes(_rng(seed, step))
        return self._granular(space, genes)

    def trains(self, space: Space, architecture: Any) -> bool:
        """One granularity in all blocks, and else the largest where `rest` says so."""
        largest = self.rest == "largest"
        return architecture in self._granular(
            space, space.encode(space.largest() if largest else architecture)
        )

    def _granular(self, space: Space, genes: np.ndarray) -> list[Any]:
        """`genes` at each granularity, the largest first."""
        named = _granularities(space, self.gene)
        found: dict[Any, None] = {}
        for level in range(max(space.genes[i].cardinality for i in named)):
            granular = genes.copy()
            for i in named:
                down = space.genes[i].hole.ascending[::-1]
                granular[i] = down[min(level, len(down) - 1)]
            found[space.decode(space.repair(granular))] = None
        return list(found)


@dataclass(frozen=True)
class OneBatch(Subnets):
    """`count` subnets drawn anew, each on a share of the batch of its own, in one backward pass
    (multi-architectural sampling, ViT-ResNAS, Liao et al., 2021, §3.3)."""

    shares_batch = True

    count: int = 4

    def __post_init__(self) -> None:
        _require_count("count", self.count, 1)

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        rng = _rng(seed, step)
        return [space.sample(rng) for _ in range(self.count)]


@dataclass(frozen=True)
class CostBalanced(Subnets):
    """Subnets of all costs alike: the range of costs is cut into `bins` of one width, of which each is as
    likely as any other. Plain draws of many choices crowd around a middle cost.

    Attributes:
        cost: of a space, the function that gives its costs, such as `search_spaces.costs.Mmacs(32)`, for
            spaces of `search_spaces.hierarchical`.
        count: subnets per step.
    """

    cost: Callable[[Space], Costs]
    bins: int = 8
    count: int = 1

    def __post_init__(self) -> None:
        _require_count("bins", self.bins, 1, MOST_BINS)
        _require_count("count", self.count, 1)

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        rng, bins = _rng(seed, step), _bins(self.cost, space, self.bins)
        return [space.decode(bins.draw(int(rng.integers(len(bins))), rng)) for _ in range(self.count)]


@dataclass(frozen=True)
class BoundedJumps(Subnets):
    """One subnet, whose cost is in the bin of the one before or in one beside it, so that gradients of
    following steps come from subnets of similar size (ElasticViT, Tang et al., 2023, §3.2)."""

    cost: Callable[[Space], Costs]
    bins: int = 8

    def __post_init__(self) -> None:
        _require_count("bins", self.bins, 1, MOST_BINS)

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        bins = _bins(self.cost, space, self.bins)
        return [space.decode(bins.draw(_wander(seed, step, len(bins)), _rng(seed, step)))]


PHASES = (("heads", "head_dim", "value_dim", "kernel", "size"), ("blocks",), ("ratio",), ("width",))


@dataclass(frozen=True)
class Progressive(Subnets):
    """The largest subnet and `random` others, in which a choice is at its largest until its phase begins:
    progressive widening (Once-for-all, Cai et al., 2020, §3.3, whose teacher is a largest subnet that was
    trained before: that is `Distillation(external=…, teacher=…)` here).

    Attributes:
        phases: fields whose choices each phase opens, in order; of a `repeat` its length and those among its
            entries (``len(blocks)``: its length alone). The largest is trained alone before the first; what
            no phase names is open in all of them.
        share: of the training after which all phases have begun, evenly.
    """

    teaches = True

    phases: tuple[tuple[str, ...], ...] = PHASES
    share: float = 0.8
    random: int = 1

    def __post_init__(self) -> None:
        _require_count("random", self.random, 1)
        require_types(self, INSIDE)
        if not 0 < self.share <= 1:
            raise RunError(f"`training.subnets.share` must be above 0 and at most 1: got {self.share}.")

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        largest = space.largest()
        named = [_of_fields(space, phase) for phase in self.phases]
        empty = [phase for phase, genes in zip(self.phases, named, strict=True) if not genes]
        if space.genes and empty and (self.phases != PHASES or len(empty) == len(PHASES)):
            known = ", ".join(_fields(space))
            raise RunError(
                f"`training.subnets.phases` must name choices of the space, of which there are {known}: "
                f"{empty[0]} names none."
            )
        begun = int(progress / self.share * (len(self.phases) + 1))
        if begun == 0:
            return [largest]
        closed = sorted(set().union(*named[begun:]) - set().union(*named[:begun]))
        rng = _rng(seed, step)
        return [largest, *(self._drawn(space, closed, rng) for _ in range(self.random))]

    def _drawn(self, space: Space, closed: Sequence[int], rng: np.random.Generator) -> Any:
        genes = space.sample_genes(rng)
        for i in closed:
            genes[i] = space.genes[i].hole.ascending[-1]
        return space.decode(space.repair(genes))


# --- costs ----------------------------------------------------------------------------------------


COST = "`cost` of the rule must give, of a space, a function from genes (n, genes) to their costs (n,)"


class _Bins:
    """Architectures by cost: members of each bin, from which walks begin."""

    def __init__(self, space: Space, cost: Costs, count: int) -> None:
        self.space, self.cost = space, cost
        rng = np.random.default_rng(0)
        ends = [space.encode(a) for a in (space.smallest(), space.largest())]
        drawn = np.array([*ends, *(space.sample_genes(rng) for _ in range(POOL))])
        costs = self._of(drawn)
        self.edges = np.linspace(costs.min(), costs.max(), count + 1)
        where = self._where(costs)
        members = [drawn[where == b] for b in range(count)]
        found = [m if len(m) >= LEAST else self._more(m, b, rng) for b, m in enumerate(members)]
        self.numbers = [b for b, m in enumerate(found) if len(m)]
        self.members = [found[b] for b in self.numbers]

    def __len__(self) -> int:
        return len(self.members)

    def draw(self, b: int, rng: np.random.Generator) -> np.ndarray:
        """Genes of the b-th bin that has members: one of those after some mutations within the bin."""
        genes = self.members[b][rng.integers(len(self.members[b]))]
        for _ in range(STEPS):
            moved = self.space.mutate(genes, rng)
            if self._where(self._of(moved[None]))[0] == self.numbers[b]:
                genes = moved
        return genes

    def _more(self, members: np.ndarray, b: int, rng: np.random.Generator) -> np.ndarray:
        within = Within(self.space, self.cost, float(self.edges[b]), float(self.edges[b + 1]))
        try:
            return np.array([*members, *(within.sample_genes(rng) for _ in range(LEAST))])
        except SpaceError:  # no architecture costs that much
            return members

    def _of(self, genes: np.ndarray) -> np.ndarray:
        with errors_of_users(lambda: f"{COST}, but"):
            found = np.asarray(self.cost(genes), dtype=float).reshape(len(genes))
        if not np.isfinite(found).all():
            raise RunError(f"{COST}, which are finite: got {found[~np.isfinite(found)][0]}.")
        return found

    def _where(self, costs: np.ndarray) -> np.ndarray:
        return np.clip(np.searchsorted(self.edges, costs, side="right") - 1, 0, len(self.edges) - 2)


@lru_cache(maxsize=8)
def _bins(cost: Callable[[Space], Costs], space: Space, count: int) -> _Bins:
    with errors_of_users(lambda: f"{COST}, but"):
        costs = cost(space)
    return _Bins(space, costs, count)


def _wander(seed: int, step: int, bins: int) -> int:
    """Where a walk over `bins` is after `step` steps of −1, 0 or 1; one past an end stays there, so that all
    bins are visited alike."""
    place = int(_path(seed, 1 << max(10, step.bit_length()))[step]) % (2 * bins)
    return min(place, 2 * bins - 1 - place)


@lru_cache(maxsize=4)
def _path(seed: int, steps: int) -> np.ndarray:
    """Sums of random steps, (steps,); a longer path begins with the shorter one."""
    return np.cumsum(np.random.default_rng((seed, 1)).integers(-1, 2, steps))


# --- genes ----------------------------------------------------------------------------------------


def _of_fields(space: Space, names: Sequence[str]) -> set[int]:
    """Genes of fields of these names; ``len(NAME)`` is the length of a `repeat`."""
    return {
        i
        for i, gene in enumerate(space.genes)
        if (field := _field(gene.name)) in names
        or (isinstance(gene.hole, Repeat) and f"len({field})" in names)
    }


def _field(name: str) -> str:
    """The field that a gene of that name is in: itself, or an entry of it, such as ``hidden.0``."""
    parts = name.partition("[")[0].partition("#")[0].split(".")
    return next((part for part in reversed(parts) if not part.isdigit()), parts[-1])


def _fields(space: Space) -> list[str]:
    return sorted({_field(gene.name) for gene in space.genes})


def _granularities(space: Space, name: str) -> list[int]:
    """Genes of the field `name`; the length of a `repeat` where there is nothing else."""
    found = sorted(i for i in _of_fields(space, (name,)) if not isinstance(space.genes[i].hole, Between))
    if not found:
        raise RunError(
            f"`training.subnets.gene` must be the name of a choice of the space: got {name!r} among "
            f"{', '.join(_fields(space))}."
        )
    return [i for i in found if not isinstance(space.genes[i].hole, Repeat)] or found


def _rng(seed: int, step: int) -> np.random.Generator:
    return np.random.default_rng((seed, step))


def _require_count(name: str, value: int, least: int, most: int | None = None) -> None:
    if type(value) is not int or value < least or (most is not None and value > most):
        ends = f"{least} or more" if most is None else f"from {least} to {most}"
        raise RunError(f"`training.subnets.{name}` must be a whole number, {ends}: got {value!r}.")
