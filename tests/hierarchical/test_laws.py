"""What no architecture may be: said with the law, the facts, the path and the remedy, and never sampled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nas.errors import SpaceError
from nas.layers import (
    Block,
    ChannelMixer,
    Global,
    Mixer,
    Mlp,
    NoFfn,
    NoMixer,
    PatchMerging,
    PatchStem,
    Window,
)
from nas.layers.catalogue import members
from nas.layers.downsampling.depthwise_pooling import DepthwisePooling
from nas.space import Space, oneof, repeat
from search_spaces import hierarchical
from search_spaces.hierarchical import ClassToken, HierarchicalTransformer, Stage, laws


def of_blocks(blocks):
    return Space(HierarchicalTransformer(PatchStem(2), (Stage(oneof(16, 24), blocks),), 4), laws(8))


def test_a_block_that_does_nothing_is_refused_and_never_sampled():
    space = of_blocks(repeat(Block(oneof(Global(2), NoMixer()), oneof(Mlp(2), NoFfn())), 1, 2))
    assert space.size == 2 * (3 + 3 * 3)  # widths; 1 of 4 blocks is empty
    empty = HierarchicalTransformer(PatchStem(2), (Stage(16, (Block(NoMixer(), NoFfn()),)),), 4)
    with pytest.raises(SpaceError, match=r"stages\.0\.blocks\.0.*must do something: got NoMixer and NoFfn"):
        space.check(empty)
    rng = np.random.default_rng(0)
    drawn = {space.sample(rng) for _ in range(400)}
    assert len(drawn) == space.size
    assert Block(NoMixer(), NoFfn()) not in {b for a in drawn for b in a.stages[0].blocks}


@pytest.mark.parametrize("other", [{"mixer2": Global(2)}, {"ffn2": Mlp(2)}], ids=["mixer2", "ffn2"])
def test_what_stands_beside_nothing_is_something(other):
    of_blocks((Block(NoMixer(), NoFfn(), **other),))
    with pytest.raises(SpaceError, match="leave none"):
        of_blocks((Block(NoMixer(), NoFfn()),))


def with_token(down=None, later=None, **part) -> HierarchicalTransformer:
    block = Block(**({"mixer": Global(1), "ffn": Mlp(1)} | part))
    stages = (Stage(16, (block,), token=ClassToken()), Stage(16, (block,), down, token=later))
    return HierarchicalTransformer(PatchStem(1), stages, classes=3)


CHOICES = [c for family in (Mixer, ChannelMixer) for c in members(family)]
USUAL = {"mixer": Global(2), "ffn": Mlp(2)}


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.__name__)
def test_beside_a_class_token_a_part_takes_it_or_is_refused(choice):
    """By the law before anything is built, and by name where it runs all the same."""
    name = "mixer" if issubclass(choice, Mixer) else "ffn"
    part = Space(hierarchical.with_holes(choice)).smallest()
    architecture = with_token(**{name: part})
    space = Space(with_token(**{name: oneof(part, USUAL[name])}), laws(8))
    model = hierarchical.build(architecture).eval()
    if choice.takes_tokens:
        assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)
        space.check(architecture)
        return
    with pytest.raises(SpaceError, match=r"must take it: got \w+\. Use Global"):
        model(torch.rand(2, 1, 8, 8))
    with pytest.raises(SpaceError, match=f"must take the class token .* which {choice.__name__} does not"):
        space.check(architecture)


def test_a_token_goes_through_downsampling_and_joins_once():
    pooling = DepthwisePooling(tokens=True)
    space = Space(with_token(oneof(None, pooling, PatchMerging()), oneof(None, ClassToken())), laws(8))
    assert space.size == 2
    assert hierarchical.build(with_token(pooling)).eval()(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    for down, later in ((PatchMerging(), None), (None, ClassToken())):
        architecture = with_token(down, later)
        with pytest.raises(SpaceError, match=r"stages\.1.*token"):
            space.check(architecture)
        with pytest.raises(SpaceError, match=r"Parts beside a class token|One stage alone"):
            hierarchical.build(architecture).eval()(torch.rand(2, 1, 8, 8))


def test_a_token_may_be_a_choice():
    block = Block(oneof(Global(1), Window(1, 2)), Mlp(1))
    stage = Stage(16, (block,), token=oneof(None, ClassToken()))
    assert Space(HierarchicalTransformer(PatchStem(1), (stage,), classes=3), laws(8)).size == 3
