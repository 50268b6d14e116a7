"""What no architecture may be: said with the law, the facts, the path and the remedy, and never sampled."""

from __future__ import annotations

import numpy as np
import pytest

from nas.errors import SpaceError
from nas.layers import Block, Global, Mlp, NoFfn, NoMixer, PatchStem
from nas.space import Space, oneof, repeat
from search_spaces.hierarchical import HierarchicalTransformer, Stage, laws


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
