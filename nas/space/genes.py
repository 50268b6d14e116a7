"""A space, flattened: the choices it asks for, in an order in which each can be made.

A gene is one choice. Holes of alternative options that stand at the same path and offer the same choices
are one gene (`mixer.heads` of window and of global attention, say), so gene names mirror parameter paths
and a crossover that changes the mixer keeps the heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

from nas.architecture import join
from nas.errors import SpaceError
from nas.space.holes import Between, Hole, OneOf, Repeat, Tied

# A condition is a chain of choices that must have been made: ((gene, lowest, highest), …). Conditions of
# a gene are alternatives; an empty chain always holds.
Condition = tuple[tuple[int, int, int], ...]

FIRST = {"chosen": "first"}
"""Metadata of a dataclass field that is chosen before its siblings, wherever it stands among them, so that
their constraints may read it: ``down: Downsample = field(default=None, metadata=FIRST)``."""


@dataclass(frozen=True)
class Gene:
    """One choice among `cardinality`, made where one of its `conditions` holds."""

    name: str
    hole: Hole
    conditions: tuple[Condition, ...]

    @property
    def cardinality(self) -> int:
        return self.hole.cardinality


@dataclass(frozen=True)
class Site:
    """A place where a dataclass of the template may stand."""

    path: str
    ancestors: tuple[tuple[str, Any], ...]  # (path, template), from the root to the parent
    template: Any
    condition: Condition
    ready: int  # the last gene on which this place, all inside it and all before it depend, -1 for none


@dataclass(frozen=True)
class Flat:
    """The genes of a template, its sites, and which gene stands at which occurrence of a hole."""

    genes: tuple[Gene, ...]
    sites: tuple[Site, ...]
    at: dict[tuple[str, int], int]  # (path, id of the hole) -> gene
    plain: frozenset[int]  # ids of the dataclasses in which there is no hole, and no list


def _hashable(node: Any) -> bool:
    try:
        hash(node)
    except TypeError:
        return False
    return True


def flatten(template: Any) -> Flat:
    """The genes and sites of `template`, genes ordered depth first, each after all its conditions."""
    walk = _Walk()
    walk.visit(template, "", "", (), (), frozenset())
    return walk.result()


class _Walk:
    def __init__(self) -> None:
        self.keys: dict[tuple[str, Hole], int] = {}
        self.owners: list[str] = []
        self.conditions: list[list[Condition]] = []
        self.at: dict[tuple[str, int], int] = {}
        self.plain: set[int] = set()
        self.sites: list[tuple[str, tuple[tuple[str, Any], ...], Any, Condition, Set[int]]] = []

    def visit(
        self,
        node: Any,
        path: str,
        gene_path: str,
        condition: Condition,
        ancestors: tuple[tuple[str, Any], ...],
        before: frozenset[int],
    ) -> set[int]:
        """Registers the holes of `node`; returns the genes in it. `gene_path` differs below a tie, and
        `before` are the genes of earlier siblings, its own and its ancestors'."""
        if isinstance(node, Tied):
            self.at[path, id(node)] = gene = self._gene(node.name, node.hole, condition, ancestors)
            return self._inside(node.hole, gene, path, node.name, condition, ancestors, before)
        if isinstance(node, (OneOf, Repeat, Between)):
            self.at[path, id(node)] = gene = self._gene(gene_path, node, condition, ancestors)
            return self._inside(node, gene, path, gene_path, condition, ancestors, before)
        inside: set[int] = set()
        if isinstance(node, (tuple, list)):
            for i, item in enumerate(node):
                places = join(path, i), join(gene_path, i)
                inside |= self.visit(item, *places, condition, ancestors, before | inside)
        elif dataclasses.is_dataclass(node):
            below = (*ancestors, (path, node))
            fields = sorted(dataclasses.fields(node), key=lambda f: f.metadata.get("chosen") != "first")
            for name in (f.name for f in fields):
                value = getattr(node, name)
                places = join(path, name), join(gene_path, name)
                inside |= self.visit(value, *places, condition, below, before | inside)
            self.sites.append((path, ancestors, node, condition, before | inside))
            if not inside and _hashable(node):
                self.plain.add(id(node))
        return inside

    def _inside(
        self,
        hole: Hole,
        gene: int,
        path: str,
        gene_path: str,
        condition: Condition,
        ancestors: tuple[tuple[str, Any], ...],
        before: frozenset[int],
    ) -> set[int]:
        inside = {gene}
        for value, low, steps in _contents(hole):
            chosen = condition
            if low > 0 or not isinstance(hole, Repeat):
                chosen = (*condition, (gene, low, hole.cardinality - 1 if steps else low))
            where, name = (join(p, steps[0]) if steps else p for p in (path, gene_path))
            earlier = before | inside if steps else before | {gene}  # blocks are siblings, options are not
            inside |= self.visit(value, where, name, chosen, ancestors, earlier)
        return inside

    def _gene(
        self, name: str, hole: Hole, condition: Condition, ancestors: tuple[tuple[str, Any], ...]
    ) -> int:
        gene = self.keys.setdefault((name, hole), len(self.keys))
        if gene == len(self.conditions):
            self.conditions.append([])
            self.owners.append(type(ancestors[-1][1]).__name__ if ancestors else "")
        self.conditions[gene].append(condition)
        return gene

    def result(self) -> Flat:
        order = self._order()
        place = {gene: i for i, gene in enumerate(order)}
        names = self._names()
        holes = [hole for _, hole in self.keys]

        def moved(condition: Condition) -> Condition:
            return tuple((place[gene], low, high) for gene, low, high in condition)

        genes = tuple(
            Gene(names[g], holes[g], tuple(dict.fromkeys(moved(c) for c in self.conditions[g])))
            for g in order
        )
        sites = tuple(
            Site(
                path,
                ancestors,
                node,
                moved(condition),
                max([place[g] for g in known] + [place[g] for g, _, _ in condition], default=-1),
            )
            for path, ancestors, node, condition, known in self.sites
        )
        at = {key: place[gene] for key, gene in self.at.items()}
        return Flat(genes, sites, at, frozenset(self.plain))

    def _order(self) -> list[int]:
        """Depth first, but a shared gene only after everything that decides whether it is asked for: it goes
        with the last of those, behind it."""
        ranks: dict[int, tuple[int, int]] = {}  # the place, and how many steps behind it

        def rank(gene: int, above: frozenset[int]) -> tuple[int, int]:
            if gene in above:
                raise SpaceError(f"A tied hole must not stand inside itself: `{list(self.keys)[gene][0]}`.")
            if gene not in ranks:
                needed = {g for c in self.conditions[gene] for g, _, _ in c}
                behind = [(place, steps + 1) for place, steps in (rank(g, above | {gene}) for g in needed)]
                ranks[gene] = max([(gene, 0), *behind])
            return ranks[gene]

        return sorted(range(len(self.keys)), key=lambda g: (rank(g, frozenset()), g))

    def _names(self) -> list[str]:
        """The paths; where several choices share one, with the class that asks and a number."""
        paths = [path for path, _ in self.keys]
        names: list[str] = []
        for gene, path in enumerate(paths):
            name = path or "architecture"
            if paths.count(path) > 1:
                name = f"{path}[{self.owners[gene]}]"
            same = sum(n == name or n.startswith(f"{name}#") for n in names)
            names.append(f"{name}#{same + 1}" if same else name)
        return names


def _contents(hole: Hole) -> Iterator[tuple[Any, int, Sequence[int]]]:
    """What a hole may hold: (value, smallest choice that holds it, position for a repeated block)."""
    if isinstance(hole, OneOf):
        for i, option in enumerate(hole.options):
            yield option, i, ()
    elif isinstance(hole, Repeat):
        for k in range(hole.high):
            yield hole.block, max(0, k - hole.low + 1), (k,)
