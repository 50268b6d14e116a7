"""Rules by which a step chooses its subnets."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from training.small import made_up_task

from nas.errors import RunError
from nas.space import Space, between, oneof, repeat
from nas.training import (
    BoundedJumps,
    CostBalanced,
    Nested,
    OneBatch,
    Only,
    Progressive,
    Sandwich,
    SinglePath,
)
from nas.training.subnets import _wander
from search_spaces import hierarchical
from search_spaces.costs import Mmacs


@pytest.fixture(scope="module")
def space() -> Space:
    return hierarchical.space(made_up_task(), widths=((8, 16), (16, 24)), depths=(1, 2))


COST = Mmacs(8)
RULES = [
    SinglePath(),
    Sandwich(),
    Sandwich(random=1, smallest=False),
    Nested(),
    Nested(rest="random"),
    OneBatch(3),
    CostBalanced(COST, bins=4, count=2),
    BoundedJumps(COST, bins=4),
    Progressive(),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_seed_and_step_decide_and_all_are_legal(rule, space):
    seen = []
    for step in range(12):
        chosen = rule.at(space, 0, step, step / 12)
        assert chosen == rule.at(space, 0, step, step / 12)
        for architecture in chosen:
            space.check(architecture)
            assert rule.trains(space, architecture)
        seen.append(tuple(chosen))
        if rule.teaches:
            assert chosen[0] == space.largest()
    others = [tuple(rule.at(space, 1, step, step / 12)) for step in range(12)]
    if rule != Nested():
        assert len(set(seen)) > 3
        assert others != seen


def test_sandwich(space):
    largest, smallest, *drawn = Sandwich(random=2).at(space, 0, 5, 0)
    assert (largest, smallest) == (space.largest(), space.smallest())
    assert len(set(drawn)) == 2
    assert Sandwich(random=2, smallest=False).at(space, 0, 5, 0) == [largest, *drawn]
    every = [a for i in range(20) for a in Sandwich(random=2).at(space, 0, i, 0)[2:]]
    assert {b.mixer.bits.weight for a in every for b in a.stages[0].blocks} == {4, 8, 32}


@pytest.mark.parametrize(
    ("rule", "count"),
    [(OneBatch(3), 3), (CostBalanced(COST, bins=3, count=4), 4), (Progressive(random=4), 5)],
)
def test_a_step_trains_so_many(rule, count, space):
    assert len(set(rule.at(space, 0, 0, 0.9))) == count


def test_one_alone(space):
    architecture = space.smallest()
    assert Only(architecture).at(space, 0, 3, 0.5) == [architecture]
    assert Only(architecture).trains(space, architecture)
    assert not Only(architecture).trains(space, space.largest())


class TestNested:
    def test_one_for_each_granularity_in_all_blocks_alike(self, space):
        chosen = Nested("ratio").at(space, 0, 0, 0)
        ratios = [{block.ffn.ratio for stage in a.stages for block in stage.blocks} for a in chosen]
        assert ratios == [{3}, {2}, {1}]
        largest = space.largest()
        assert chosen[0] == largest
        for a in chosen:
            assert [s.width for s in a.stages] == [s.width for s in largest.stages]
            assert [len(s.blocks) for s in a.stages] == [len(s.blocks) for s in largest.stages]

    def test_the_rest_may_be_drawn_once_for_all_of_them(self, space):
        widths = set()
        for step in range(10):
            chosen = Nested("ratio", rest="random").at(space, 0, step, 0)
            assert len({tuple((s.width, len(s.blocks)) for s in a.stages) for a in chosen}) == 1
            widths.add(chosen[0].stages[0].width)
        assert widths == {8, 16}

    def test_mixed_granularities_are_never_trained(self, space):
        rng = np.random.default_rng(0)
        for architecture in (space.sample(rng) for _ in range(100)):
            alike = len({block.ffn.ratio for stage in architecture.stages for block in stage.blocks}) == 1
            assert Nested("ratio", rest="random").trains(space, architecture) == alike
            assert not Nested("ratio").trains(space, architecture)  # which keeps all else at the largest

    def test_choices_among_entries(self, entries):
        """And not how many entries there are; that, where it is asked for."""
        rule = Nested("hidden", rest="random")
        for step in range(10):
            chosen = rule.at(entries, 0, step, 0)
            assert [set(a.hidden) for a in chosen] == [{32}, {16}, {8}]
            assert len({len(a.hidden) for a in chosen}) == 1
        assert not rule.trains(entries, Entries((32, 16, 8), 4))
        assert rule.trains(entries, Entries((16, 16), 4))
        lengths = Nested("len(hidden)").at(entries, 0, 0, 0)
        assert [a.hidden for a in lengths] == [(32, 32, 32), (32, 32), (32,)]

    def test_a_choice_that_is_not_there(self, space):
        with pytest.raises(RunError, match=r"the name of a choice of the space: got 'rtio' among .*ratio"):
            Nested("rtio").at(space, 0, 0, 0)
        with pytest.raises(
            RunError, match=r"`training\.subnets\.rest` must be 'largest' or 'random': got 'smallest'"
        ):
            Nested(rest="smallest")


class TestByCost:
    def bins_of(self, space, rule, n: int) -> list[int]:
        cost = COST(space)
        ends = cost(np.array([space.encode(a) for a in (space.smallest(), space.largest())]))
        drawn = [a for step in range(n) for a in rule.at(space, 0, step, step / n)]
        found = cost(np.array([space.encode(a) for a in drawn]))
        assert ends.min() <= found.min()
        return (
            np.clip((found - ends[0]) / (ends[1] - ends[0]) * rule.bins, 0, rule.bins - 1)
            .astype(int)
            .tolist()
        )

    def test_all_bins_are_as_likely(self, space):
        counts = Counter(self.bins_of(space, CostBalanced(COST, bins=5), 500))
        assert set(counts) == set(range(5))
        assert max(counts.values()) < 2 * min(counts.values())
        plain = Counter(self.bins_of(space, _WithBins(5), 500))
        assert max(plain.values()) > 4 * min(plain.get(b, 0) for b in range(5))

    def test_draws_differ_within_a_bin(self, space):
        rule = CostBalanced(COST, bins=3)
        drawn = [rule.at(space, 0, step, 0)[0] for step in range(100)]
        assert len(set(drawn)) > 80

    def test_costs_change_by_one_bin_at_most(self, space):
        bins = self.bins_of(space, BoundedJumps(COST, bins=6), 400)
        steps = np.abs(np.diff(bins))
        assert steps.max() == 1
        assert set(bins) == set(range(6))

    def test_a_walk_is_as_often_at_the_ends(self):
        counts = Counter(_wander(0, step, 6) for step in range(50_000))
        assert set(counts) == set(range(6))
        assert max(counts.values()) < 1.25 * min(counts.values())

    def test_a_longer_walk_begins_as_a_shorter_one(self, space):
        rule = BoundedJumps(COST, bins=6)
        early = rule.at(space, 3, 5, 0)
        rule.at(space, 3, 5000, 0.5)
        assert rule.at(space, 3, 5, 0) == early


class _WithBins(SinglePath):
    def __init__(self, bins: int) -> None:
        object.__setattr__(self, "bins", bins)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Progressive(phases=("ratio",)),
            "phases` must be a tuple, each item a tuple, each item a text",
        ),
        (lambda: Progressive(share="x"), "`training.subnets.share` must be a number"),
        (lambda: Sandwich(smallest="no"), "`training.subnets.smallest` must be True or False"),
        (lambda: Nested(gene=3), "`training.subnets.gene` must be a text"),
    ],
)
def test_settings_of_rules_are_of_their_kind(make, message):
    """`"ratio"` for `("ratio",)` would name whatever is part of that word."""
    with pytest.raises(RunError, match=message):
        make()


def test_phases_that_open_nothing_are_refused(space):
    for phases in ((("kernl",),), (("ratio",), ("kernl",))):
        with pytest.raises(RunError, match=r"phases` must name choices .*ratio.*\('kernl',\) names none"):
            Progressive(phases).at(space, 0, 0, 0.5)
    Progressive().at(space, 0, 0, 0.5)  # of the default ones not every space has all


@dataclass(frozen=True)
class Entries:
    hidden: tuple[int, ...]
    width: int


@pytest.fixture(scope="module")
def entries() -> Space:
    return Space(Entries(repeat(oneof(8, 16, 32), 1, 3), oneof(4, 8)))


class TestProgressive:
    @pytest.mark.parametrize(
        ("phases", "early", "late"),
        [
            ((("width",), ("hidden",)), {(32, 32, 32)}, 39),
            ((("len(hidden)",), ("hidden",)), {(32,), (32, 32), (32, 32, 32)}, 39),
        ],
    )
    def test_entries_are_closed_with_their_field(self, entries, phases, early, late):
        def drawn(progress):
            rule = Progressive(phases, share=1.0, random=400)
            return {a.hidden for a in rule.at(entries, 0, 1, progress)}

        assert drawn(0.4) == early
        assert len(drawn(0.7)) == late

    RULE = Progressive((("heads", "size"), ("blocks",), ("ratio",), ("width",)), share=0.8, random=4)

    def seen(self, space, progress: float) -> dict[str, set]:
        drawn = [a for step in range(20) for a in self.RULE.at(space, 0, step, progress)[1:]]
        return {
            "heads": {b.mixer.heads for a in drawn for s in a.stages for b in s.blocks},
            "blocks": {len(s.blocks) for a in drawn for s in a.stages},
            "ratio": {b.ffn.ratio for a in drawn for s in a.stages for b in s.blocks},
            "width": {a.stages[0].width for a in drawn},
            "bits": {b.ffn.bits.weight for a in drawn for s in a.stages for b in s.blocks},
        }

    def test_choices_open_phase_by_phase(self, space):
        assert self.RULE.at(space, 0, 0, 0.0) == [space.largest()]
        at_top = {"heads": {4}, "blocks": {2}, "ratio": {3}, "width": {16}, "bits": {4, 8, 32}}
        opened = {"heads": {1, 2, 4}, "blocks": {1, 2}, "ratio": {1, 2, 3}, "width": {8, 16}}
        expected = dict(at_top)
        for phase, name in enumerate(("heads", "blocks", "ratio", "width"), start=1):
            expected[name] = opened[name]
            assert self.seen(space, phase * 0.16 + 0.01) == expected
        assert self.seen(space, 0.99) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sandwich(random=-1), "`training.subnets.random` must be a whole number, 0 or more: got -1"),
        (lambda: OneBatch(0), "`training.subnets.count` must be a whole number, 1 or more: got 0"),
        (lambda: CostBalanced(COST, bins=0), "`training.subnets.bins` must be"),
        (lambda: CostBalanced(COST, bins=33), "a whole number, from 1 to 32: got 33"),
        (lambda: BoundedJumps(COST, bins=2.0), "`training.subnets.bins` must be"),
        (lambda: Progressive(share=0), "`training.subnets.share` must be above 0"),
    ],
)
def test_numbers_that_are_none(make, message):
    with pytest.raises(RunError, match=message):
        make()


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda space: max([]), r"`cost` of the rule must give, .*, but.*ValueError"),
        (lambda space: lambda genes: genes[:, 999], r"`cost` of the rule must give, .*, but.*IndexError"),
        (lambda space: lambda genes: np.zeros(3), r"`cost` of the rule must give, .*, but.*reshape"),
        (lambda space: lambda genes: np.log(genes[:, 0] * 0 - 1), r"`cost` .*, which are finite: got nan"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_costs_that_are_none(space, cost, message):
    with pytest.raises(RunError, match=message):
        CostBalanced(cost).at(space, 0, 0, 0.0)


def test_numbers_between_are_no_granularities():
    @hierarchical.dataclass(frozen=True)
    class Net:
        layers: tuple
        ratio: float

    space = Space(Net(repeat(oneof(1, 2), 1, 2), between(0.5, 2)))
    with pytest.raises(RunError, match="must be the name of a choice"):
        Nested("ratio").at(space, 0, 0, 0)
    assert math.isfinite(space.size)
