"""`Space`: the one object that training, sampling, encoding, search and export share."""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from nas.architecture import (
    architecture_id,
    canonical,
    digest,
    from_json,
    join,
    reachable_classes,
    to_json,
)
from nas.errors import SpaceError
from nas.space.genes import Gene, Site, flatten
from nas.space.holes import Between, OneOf, Repeat, Tied
from nas.space.membership import listing, matches, require_disjoint_options
from nas.space.memo import Known, Memo
from nas.space.views import Context, Reader, materialise
from nas.space.without import without

_HOLES = (OneOf, Repeat, Between, Tied)


@dataclass(frozen=True)
class Constraint:
    """A law for every value of class `on`: `rule(value, context)` returns what is wrong, or None.

    The text states the law, the facts and the remedy; the path is put before it. A rule may read its
    value, its ancestors and earlier siblings, which keeps sampling legal and counting exact.

    Example:
        >>> def divides(window, context):
        ...     side = 8 // 2 ** context.index("stages")
        ...     if side % window.size:
        ...         return f"must divide the feature map: got size={window.size} on {side}×{side}."
        >>> Space(template, [Constraint(Window, divides)])
    """

    on: type
    rule: Callable[[Any, Context], str | None]

    def __post_init__(self) -> None:
        if not isinstance(self.on, type) or not callable(self.rule):
            raise SpaceError(
                f"A constraint must be on a class, with a function as its rule: got {self.on!r} and "
                f"{self.rule!r}."
            )


PATIENCE = 10.0
"""Seconds after which a space that is still counted says so."""


class Space:
    """All architectures that `template`, a dataclass with holes, can become under `constraints`.

    Genes are integers, in the order of `genes`; those that an architecture does not ask for are 0.

    Args:
        template: the user's dataclass, with `oneof`, `repeat`, `between` and `tied` where a choice is.
        constraints: laws that need values. No architecture that breaks one is ever sampled.
        classes: more than those that `template` reaches, by name, of which architectures of others are read.

    Raises:
        SpaceError: no legal architecture exists, options overlap, or a constraint reads what comes later.
    """

    def __init__(
        self,
        template: Any,
        constraints: Sequence[Constraint] = (),
        classes: Mapping[str, type] = MappingProxyType({}),
    ) -> None:
        self.template = template
        self.constraints = _constraints(constraints)
        self._others = dict(classes)
        own = {name: cls for name, cls in reachable_classes(template).items() if cls not in _HOLES}
        self.classes = self._others | own
        self._flat = flatten(template)
        require_disjoint_options(self._flat.genes)
        self._checks = self._checks_by_position()
        # Counting goes one gene deeper at a time, some four calls each.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 10 * len(self.genes)))
        self._counts: Memo[int] = Memo()
        self._options: Memo[tuple[int, ...]] = Memo()
        self._refused = ""  # the first that a constraint said
        self._patience: float | None = time.monotonic() + PATIENCE
        if not self.genes:
            self.check(template)
        if self.size == 0:
            raise SpaceError(
                f"A space must hold at least one legal architecture, but its constraints leave none: "
                f"{self._refused or 'no choice is left.'}"
            )
        self._patience = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Space, (self.template, self.constraints, self._others)

    # --- what there is -------------------------------------------------------------------------

    @property
    def genes(self) -> tuple[Gene, ...]:
        return self._flat.genes

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where a dataclass of the template may stand, inner ones first."""
        return self._flat.sites

    @cached_property
    def cardinalities(self) -> np.ndarray:
        """Number of choices per gene, shape (genes,)."""
        counts = np.array([gene.cardinality for gene in self.genes], dtype=np.int64)
        counts.setflags(write=False)
        return counts

    @property
    def size(self) -> int:
        """The exact number of legal architectures, numbers of `between` aside."""
        return self._completions(0, [0] * len(self.genes))[0]

    @property
    def fingerprint(self) -> str:
        """12 hex digits: equal for equal spaces, so that a run directory can refuse another one."""
        rules = ";".join(f"{c.on.__name__}:{_name_of(c.rule)}" for c in self.constraints)
        return digest(f"{canonical(self.template)}|{rules}|{self.size}")

    def without(self, name: str, options: Sequence[Any]) -> Space:
        """The same space, in which no `oneof` of a field (or tie) called `name` has any of `options`.

        Raises:
            SpaceError: no such hole has one of them, has no other, or no architecture is left.

        Example:
            >>> space.without("ratio", [0.75, 1.5])
        """
        return Space(without(self.template, name, options), self.constraints)

    # --- values --------------------------------------------------------------------------------

    def id(self, architecture: Any) -> str:
        """The name of an architecture, 12 hex digits."""
        return architecture_id(architecture)

    def to_json(self, architecture: Any) -> Any:
        return to_json(architecture)

    def from_json(self, data: Any) -> Any:
        """The architecture that `data` describes; builds only classes that this space reaches."""
        return from_json(data, self.classes)

    def __contains__(self, architecture: object) -> bool:
        try:
            self.check(architecture)
        except SpaceError:
            return False
        return True

    def check(self, architecture: Any) -> None:
        """Raises SpaceError, naming the path, unless `architecture` is a legal member of this space."""
        for value, context in _walk(architecture):
            for constraint in self.constraints:
                if isinstance(value, constraint.on):
                    self._require(constraint, value, context)
        self._encode(architecture)

    # --- genes ---------------------------------------------------------------------------------

    def encode(self, architecture: Any) -> np.ndarray:
        """Integer vector (genes,) of a member; raises SpaceError where it leaves the space."""
        return np.array(self._encode(architecture), dtype=np.int64)

    def decode(self, genes: Sequence[int] | np.ndarray) -> Any:
        """The architecture behind an integer vector of shape (genes,)."""
        return materialise(self._reader(genes).resolve(self.template, ""))

    def active(self, genes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which genes the architecture asks for, bool of shape (genes,)."""
        reader = self._reader(genes)
        return np.array([any(map(reader.holds, gene.conditions)) for gene in self.genes], dtype=bool)

    def valid_genes(self, genes: Any) -> np.ndarray:
        """`genes` as a matrix (n, genes) of int64; one vector gives one row.

        Raises:
            SpaceError: other columns than there are genes, or numbers that none of them has.
        """
        given, n = np.atleast_2d(np.asarray(genes)), len(self.genes)
        if not len(given) or not (n or given.size):
            return np.zeros((len(given), n), dtype=np.int64)
        if given.ndim != 2 or given.shape[1] != n or not np.issubdtype(given.dtype, np.integer):
            raise SpaceError(
                f"Genes must be {n} whole numbers, as `sample_genes` and `encode` give them, or rows of "
                f"such: got {given.dtype} of shape {given.shape}."
            )
        wrong = np.argwhere((given < 0) | (given >= self.cardinalities))
        if len(wrong):
            row, i = wrong[0]
            raise SpaceError(
                f"Gene `{self.genes[i].name}` must be from 0 to {self.cardinalities[i] - 1}: got "
                f"{given[row, i]}."
            )
        return given.astype(np.int64, copy=False)

    def sample(self, rng: np.random.Generator) -> Any:
        """A legal architecture: each gene uniform over what can still be completed, depth first."""
        return self.decode(self.sample_genes(rng))

    def sample_genes(self, rng: np.random.Generator) -> np.ndarray:
        return self._complete(lambda _, options: options[int(rng.integers(len(options)))])

    def repair(self, genes: Sequence[int] | np.ndarray) -> np.ndarray:
        """The legal, canonical vector next to `genes`: each choice kept where it can be kept."""
        return self._complete(lambda i, options: min(options, key=lambda o: (abs(o - int(genes[i])), o)))

    def mutate(self, genes: np.ndarray, rng: np.random.Generator, rate: float | None = None) -> np.ndarray:
        """A legal neighbour: each active gene redrawn with probability `rate` (1/active), one at least."""
        free = np.flatnonzero(self.active(genes) & (self.cardinalities > 1))
        if not len(free):
            return genes.copy()
        drawn = rng.random(len(free)) < (1 / len(free) if rate is None else rate)
        drawn[rng.integers(len(free))] |= not drawn.any()
        child = genes.copy()
        for i in free[drawn]:
            child[i] = (child[i] + rng.integers(1, self.cardinalities[i])) % self.cardinalities[i]
        return self.repair(child)

    def crossover(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A legal child of two parents: each gene from either with probability ½ (uniform crossover)."""
        return self.repair(np.where(rng.random(len(a)) < 0.5, a, b))

    # --- ends of the range ---------------------------------------------------------------------

    def largest(self) -> Any:
        """Every choice at its top (numbers: the greatest; else the last option), where that is legal."""
        return self.decode(self._extreme({}, top=True))

    def smallest(self) -> Any:
        """Every choice at its bottom, where that is legal."""
        return self.decode(self._extreme({}, top=False))

    def cover(self) -> list[Any]:
        """Architectures in which each option of each gene occurs once, all else at its top, as far as the
        constraints allow.

        A weight bank as large as the largest of these holds every architecture whose tensors grow with
        each choice by itself; there need be no single largest model.
        """
        found = {tuple(self._extreme({}, top=True)): None}
        for i, gene in enumerate(self.genes):
            choices = (0, gene.cardinality - 1) if isinstance(gene.hole, Between) else range(gene.cardinality)
            for condition in gene.conditions:
                for choice in choices:
                    forced = {g: (low, high) for g, low, high in condition} | {i: (choice, choice)}
                    if (genes := self._forced(forced)) is not None:
                        found[tuple(genes)] = None
        return [self.decode(genes) for genes in found]

    def _forced(self, forced: Mapping[int, tuple[int, int]]) -> np.ndarray | None:
        """The legal vector with these choices and all else at its top; None where there is none."""
        genes = self._extreme(forced, top=True)
        if all(low <= genes[g] <= high for g, (low, high) in forced.items()):
            return genes
        return _Way(self, forced).genes()  # what is at its top stands in the way: a small map, of a window

    def _extreme(self, forced: Mapping[int, tuple[int, int]], top: bool) -> np.ndarray:
        orders = [gene.hole.ascending for gene in self.genes]

        def choose(i: int, options: Sequence[int]) -> int:
            low, high = forced.get(i, (0, self.genes[i].cardinality))
            wanted = [o for o in options if low <= o <= high] or options
            return (max if top else min)(wanted, key=orders[i].index)

        return self._complete(choose)

    # --- legality: a dynamic programme over genes -----------------------------------------------

    def _complete(self, choose: Callable[[int, Sequence[int]], int]) -> np.ndarray:
        genes = [0] * len(self.genes)
        for i, gene in enumerate(self.genes):
            options = self._legal_options(i, genes)[0]
            if isinstance(gene.hole, Between) and any(map(self._reader(genes).holds, gene.conditions)):
                options = tuple(range(gene.cardinality))
            genes[i] = options[0] if len(options) == 1 else choose(i, options)
        return np.array(genes, dtype=np.int64)

    def _legal_options(self, i: int, genes: list[int]) -> Known[tuple[int, ...]]:
        """Choices of gene `i` from which a legal architecture can be completed, given genes before it."""

        def compute() -> Known[tuple[int, ...]]:
            counts, reads = self._counts_per_option(i, genes)
            return tuple(option for option, count in counts if count), reads

        return self._options.get(i, genes, compute)

    def _completions(self, i: int, genes: list[int]) -> Known[int]:
        """Number of legal ways to choose genes `i` and later, given those before."""
        if i == len(self.genes):
            return 1, frozenset()

        def compute() -> Known[int]:
            counts, reads = self._counts_per_option(i, genes)
            return sum(count for _, count in counts), reads

        if self._patience is not None and time.monotonic() > self._patience:
            self._patience = None
            warnings.warn(
                f"Counting a space of {len(self.genes)} genes goes on after {PATIENCE:g} s. What makes it "
                f"slow are laws that read much of what comes before them, such as several kinds of "
                f"downsampling beside many mixers; see docs/spaces.md.",
                stacklevel=2,
            )
        return self._counts.get(i, genes, compute)

    def _counts_per_option(self, i: int, genes: list[int]) -> tuple[list[tuple[int, int]], frozenset[int]]:
        gene = self.genes[i]
        reader = Reader(self._flat, genes, i)
        active = any(reader.holds(condition) for condition in gene.conditions)
        single = not active or isinstance(gene.hole, Between)
        reads, counts, kept = set(reader.reads), [], genes[i]
        for option in (0,) if single else range(gene.cardinality):
            genes[i] = option
            legal, read = self._passes(i, genes)
            count = 0
            if legal:
                count, later = self._completions(i + 1, genes)
                read |= later
            reads |= read
            counts.append((option, count))
        genes[i] = kept
        return counts, frozenset(reads - {i})

    def _passes(self, i: int, genes: Sequence[int]) -> tuple[bool, set[int]]:
        """Whether all constraints that can be judged at gene `i` hold, and the genes this depends on."""
        reader = Reader(self._flat, genes, i + 1)
        for site, constraint in self._checks.get(i, ()):
            if reader.holds(site.condition) and (problem := self._violation(site, constraint, reader)):
                self._refused = self._refused or f"`{site.path or 'architecture'}` {problem}"
                return False, reader.reads
        return True, reader.reads

    def _violation(self, site: Site, constraint: Constraint, reader: Reader) -> str | None:
        ancestors = tuple(reader.resolve(template, path) for path, template in site.ancestors)
        value = reader.resolve(site.template, site.path)
        return constraint.rule(value, Context(site.path, ancestors))

    def _checks_by_position(self) -> dict[int, list[tuple[Site, Constraint]]]:
        checks: dict[int, list[tuple[Site, Constraint]]] = {}
        for site in self.sites:
            for constraint in self.constraints:
                if isinstance(site.template, constraint.on):
                    checks.setdefault(max(site.ready, 0), []).append((site, constraint))
        return checks

    # --- helpers ---------------------------------------------------------------------------------

    def _reader(self, genes: Sequence[int] | np.ndarray) -> Reader:
        return Reader(self._flat, self.valid_genes(genes)[0].tolist(), len(self.genes))

    def _encode(self, architecture: Any) -> list[int]:
        chosen: dict[int, int] = {}
        for gene, choice, path in self._choices(self.template, architecture, ""):
            if chosen.setdefault(gene, choice) != choice:
                name = self.genes[gene].name
                raise SpaceError(f"`{path}` must equal all that is tied under `{name}`, but differs.")
        return [chosen.get(i, 0) for i in range(len(self.genes))]

    def _choices(self, node: Any, value: Any, path: str) -> Iterator[tuple[int, int, str]]:
        """(gene, choice, path) for every hole of `node` on the way through `value`."""
        hole = node.hole if isinstance(node, Tied) else node
        if isinstance(hole, OneOf):
            choice = next((i for i, o in enumerate(hole.options) if matches(o, value)), None)
            if choice is None:
                raise SpaceError(f"`{path}` must be one of {listing(hole.options)}: got {value!r}.")
            yield self._flat.at[path, id(node)], choice, path
            yield from self._choices(hole.options[choice], value, path)
        elif isinstance(hole, Repeat):
            if not isinstance(value, tuple) or not hole.low <= len(value) <= hole.high:
                raise SpaceError(
                    f"`{path}` must be a tuple of {hole.low} to {hole.high} items: got {value!r}."
                )
            yield self._flat.at[path, id(node)], len(value) - hole.low, path
            for k, item in enumerate(value):
                yield from self._choices(hole.block, item, join(path, k))
        elif isinstance(hole, Between):
            if not isinstance(value, (int, float)) or not hole.low <= value <= hole.high:
                raise SpaceError(f"`{path}` must lie between {hole.low} and {hole.high}: got {value!r}.")
            yield self._flat.at[path, id(node)], hole.level(value), path
        elif isinstance(node, (tuple, list)):
            if not isinstance(value, tuple) or len(value) != len(node):
                raise SpaceError(f"`{path}` must be a tuple of {len(node)} items: got {value!r}.")
            for i, (item, inner) in enumerate(zip(node, value, strict=True)):
                yield from self._choices(item, inner, join(path, i))
        elif dataclasses.is_dataclass(node):
            if type(node) is not type(value):
                raise SpaceError(
                    f"`{path or 'architecture'}` must be a {type(node).__name__}: got {value!r}."
                )
            for field in dataclasses.fields(node):
                item, inner = getattr(node, field.name), getattr(value, field.name)
                yield from self._choices(item, inner, join(path, field.name))
        elif node != value:
            raise SpaceError(f"`{path}` must be {node!r} in this space: got {value!r}.")

    def _require(self, constraint: Constraint, value: Any, context: Context) -> None:
        if problem := constraint.rule(value, context):
            raise SpaceError(f"`{context.path or 'architecture'}` {problem}")


def _constraints(given: Any) -> tuple[Constraint, ...]:
    found = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if wrong := [c for c in found if not isinstance(c, Constraint)]:
        raise SpaceError(
            f"`constraints` must be instances of Constraint, such as Constraint(Window, rule): got "
            f"{wrong[0]!r}."
        )
    return found


class _Way:
    """Choices from the top down that leave it possible to choose what is `forced`, {gene: (low, high)}."""

    def __init__(self, space: Space, forced: Mapping[int, tuple[int, int]]) -> None:
        self.space, self.forced, self.last = space, forced, max(forced)
        self.memo: Memo[bool] = Memo()

    def genes(self) -> np.ndarray | None:
        """Where it leads, (genes,); None where it is closed."""
        genes = [0] * len(self.space.genes)
        if not self._open(0, genes)[0]:
            return None
        for i in range(len(genes)):
            for option in self._allowed(i, self.space._legal_options(i, genes)[0]):
                genes[i] = option
                if self._open(i + 1, genes)[0]:
                    break
        return np.array(genes, dtype=np.int64)

    def _open(self, i: int, genes: list[int]) -> Known[bool]:
        if i > self.last:
            return True, frozenset()

        def compute() -> Known[bool]:
            options, read = self.space._legal_options(i, genes)
            reads, found, kept = set(read), False, genes[i]
            for option in self._allowed(i, options):
                genes[i] = option
                found, later = self._open(i + 1, genes)
                reads |= later
                if found:
                    break
            genes[i] = kept
            return found, frozenset(reads - {i})

        return self.memo.get(i, genes, compute)

    def _allowed(self, i: int, options: Sequence[int]) -> list[int]:
        hole = self.space.genes[i].hole
        low, high = self.forced.get(i, (0, hole.cardinality))
        if isinstance(hole, Between) and i in self.forced:  # nothing depends on a number
            return [high]
        return [o for o in reversed(hole.ascending) if o in options and low <= o <= high]


def _walk(value: Any, path: str = "", ancestors: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Context]]:
    if isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from _walk(item, join(path, i), ancestors)
    elif dataclasses.is_dataclass(value):
        yield value, Context(path, ancestors)
        for field in dataclasses.fields(value):
            yield from _walk(getattr(value, field.name), join(path, field.name), (*ancestors, value))


def _name_of(rule: Any) -> str:
    return repr(rule) if dataclasses.is_dataclass(rule) else getattr(rule, "__qualname__", repr(rule))
