"""Subnets that a supernet is assessed by: of the costs that were asked for, trained or left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from training.small import RECIPE, made_up_task

from nas.errors import RunError, SpaceError
from nas.experiment import Experiment
from nas.phases.chosen import Assessment, choose, small_bins
from nas.training import Nested, Subnets
from search_spaces import costs, hierarchical

WHAT = Assessment(bins=2, subnets=4, unseen=3, width=0.2)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    task = made_up_task()
    space = hierarchical.space(task, widths=((8, 16), (16, 24)), depths=(1, 2), bits=(32,))
    return Experiment("a", task, space, hierarchical.build, costs.features(space, 8), training=RECIPE)


def ratios(architecture) -> set[int]:
    return {block.ffn.ratio for stage in architecture.stages for block in stage.blocks}


def test_without_a_rule_that_leaves_something_out_all_are_trained(experiment):
    chosen = choose(experiment, replace(WHAT, unseen=0))
    assert [(c.bin, c.seen) for c in chosen] == [(0, True)] * 4 + [(1, True)] * 4
    assert len({c.id for c in chosen}) == 8
    assert chosen == choose(experiment, replace(WHAT, unseen=0))
    with pytest.raises(SpaceError, match="`--unseen` must have subnets that the training leaves out"):
        choose(experiment, WHAT)


def test_the_smallest_may_be_the_dearest(experiment):
    """Fewest options need not compute least; nothing at all is not compared."""
    figures = experiment.costs()
    top = figures(experiment.space.encode(experiment.space.largest())[None])
    turned = replace(experiment, features=lambda genes: 1.2 * top - figures(genes))
    assert len(choose(turned, replace(WHAT, unseen=0, width=0.1))) == 8
    with pytest.raises(RunError, match="Costs must be above 0"):
        choose(replace(experiment, features=lambda genes: 0 * figures(genes)), WHAT)


def test_a_bin_that_holds_too_few_is_told(experiment):
    chosen = choose(experiment, replace(WHAT, unseen=0))
    assert list(small_bins(chosen, replace(WHAT, unseen=0))) == []
    (line,) = small_bins(chosen[1:], replace(WHAT, unseen=0))
    assert "holds 3 subnets, of 4 asked for" in line
    unseen = [replace(c, seen=False) for c in chosen[:7]]
    (line,) = small_bins([*chosen, *unseen], replace(WHAT, unseen=4))
    assert "holds 3 subnets that training leaves out, of 4" in line


def test_a_bin_that_is_empty_is_told_by_what_is_asked_for(experiment):
    with pytest.raises(SpaceError, match=r"must hold 2 subnets .* holds 0\. Raise --width, lower --bins"):
        choose(experiment, Assessment(bins=1, width=1e-9))


def test_bins_that_overlap(experiment):
    """A subnet would be trained, and counted, several times."""
    with pytest.raises(RunError, match=r"must not overlap: 4 of ±50 %, .* do\. Lower --bins or --width"):
        choose(experiment, Assessment(bins=4, width=0.5))
    with pytest.raises(SpaceError):  # one bin overlaps with none
        choose(experiment, Assessment(bins=1, width=0.001, subnets=1000, unseen=2))


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"withheld": (("ratio", (2,)),)}, lambda a: 2 not in ratios(a)),
        ({"subnets": Nested("ratio", rest="random")}, lambda a: len(ratios(a)) == 1),
    ],
    ids=["withheld", "nested"],
)
def test_what_is_trained_and_what_is_not(experiment, settings, seen):
    trained = replace(experiment, training=replace(RECIPE, **settings))
    chosen = choose(trained, WHAT)
    assert [(c.bin, c.seen) for c in chosen] == [(b, s) for b in (0, 1) for s in [True] * 4 + [False] * 3]
    assert all(seen(c.architecture) == c.seen for c in chosen)
    for b in (0, 1):
        of_bin = [c.cost for c in chosen if c.bin == b]
        assert max(of_bin) / min(of_bin) <= 1.2 / 0.8
    cost = costs.Mmacs(8)(experiment.space)
    for c in chosen:
        assert c.cost == pytest.approx(float(cost(experiment.space.encode(c.architecture)[None])[0]))


def test_a_bin_that_the_training_never_enters(experiment):
    only = replace(experiment, training=replace(RECIPE, subnets=Nested("ratio")))  # all else at its largest
    with pytest.raises(
        SpaceError, match=r"A bin of costs must hold 2 subnets or more that .* holds [01].*than Nested"
    ):
        choose(only, WHAT)


@dataclass(frozen=True)
class Torch(Subnets):
    """Draws PyTorch's own numbers, and is drawn from for few of all subnets."""

    def at(self, space, seed, step, progress):
        return [space.sample(np.random.default_rng(int(torch.randint(1 << 30, ()))))]

    def trains(self, space, architecture):
        return False


def test_rules_that_draw_other_numbers_choose_the_same_at_each_call(experiment):
    drawn = replace(experiment, training=replace(RECIPE, subnets=Torch()))
    assert choose(drawn, replace(WHAT, unseen=0)) == choose(drawn, replace(WHAT, unseen=0))
