"""What papers search, each stated as a space in a few lines; all of it trains and can be taken out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from nas.errors import SpaceError
from nas.layers import Block, Global, LayerNorm, Mlp, PatchMerging, RepBN, RMSNorm, Window
from nas.layers.mixers.depthwise import DepthwiseConv
from nas.layers.mixers.pooling import Pooling
from nas.layers.norms import BatchNorm
from nas.layers.stems.patch import PatchStem
from nas.space import Constraint, Space, oneof, repeat
from nas.supernet import Supernet
from search_spaces.hierarchical import (
    HierarchicalTransformer,
    Stage,
    build,
    laws,
    space,
)
from search_spaces.laws import NeverGoesBack, OneMixerPerStage


class Task:
    classes, image_shape = 4, (1, 8, 8)


of_two_stages = partial(space, Task, widths=((16, 24), (32, 40)), depths=(1, 2), bits=(32,))
ATTENTION = Global(oneof(1, 2))


def head_count_and_dimensions_and_width():
    """NViT (Yang et al., 2023, §3.1): heads, dimension of queries and keys, of values, and the width."""
    return of_two_stages(mixers=[Global(oneof(1, 2, 4), head_dim=oneof(8, 16), value_dim=oneof(8, 16))])


def wide_and_shallow_or_narrow_and_deep():
    """Twelve heads in all (Brown et al., 2022): 1 layer of 12 heads, 2 of 6, …, 6 of 2."""
    blocks = oneof(*((Block(Global(12 // n), Mlp(oneof(1, 2))),) * n for n in (1, 2, 3, 4, 6)))
    return Space(HierarchicalTransformer(PatchStem(2), (Stage(oneof(16, 32), blocks),), 4), laws(8))


def single_scale_or_not():
    """UViT (Chen et al., 2022): one resolution and width from end to end, or stages of their own."""
    return of_two_stages(widths=((16, 32), (16, 32)), down=oneof(None, PatchMerging()))


def one_stage():
    return of_two_stages(widths=((16, 32),))


def four_stages():
    return of_two_stages(widths=((8, 16),) * 4, depths=(0, 1), down=oneof(None, PatchMerging()), patch=1)


def one_operator_per_stage():
    """Visformer (Chen et al., 2021): convolutions or attention, stage by stage."""
    one = Constraint(Block, OneMixerPerStage())
    return of_two_stages(mixers=[DepthwiseConv(oneof(3, 5)), ATTENTION], constraints=[one])


def attention_is_never_left_again():
    """EfficientFormer (Li et al., 2022, §4.1): pooling first; from where it attends, attention."""
    order = Constraint(Block, NeverGoesBack(late=(Global,), early=(Pooling,)))
    return of_two_stages(mixers=[Pooling(3), ATTENTION], constraints=[order])


def series_or_parallel():
    """Attention and FFN one after the other, or both from one input (Zhong et al., 2022)."""
    return of_two_stages(block=partial(Block, topology=oneof("series", "parallel")))


def two_attentions_and_two_ffns():
    """Side by side, attentions first (Touvron et al., 2022, §3), or one of each as ever."""
    block = partial(Block, mixer2=oneof(None, Global(2)), ffn2=oneof(None, Mlp(oneof(1, 2))))
    return of_two_stages(mixers=[ATTENTION], block=block)


def norms_and_their_place():
    """LayerNorm, RMSNorm, or batch norms that fold away; before, after, or sub (Magneto)."""
    norm = oneof(LayerNorm(), RMSNorm(), BatchNorm(), RepBN())
    return of_two_stages(block=partial(Block, norm=norm, placement=oneof("pre", "post", "sub")))


def norm_of_queries_and_keys():
    return of_two_stages(mixers=[Window(2, oneof(2, 4), qk_norm=oneof(None, LayerNorm(), RMSNorm()))])


def layer_scale():
    """CaiT (Touvron et al., 2021)."""
    return of_two_stages(block=partial(Block, layer_scale=oneof(None, 1e-5)))


STATEMENTS = (
    head_count_and_dimensions_and_width,
    wide_and_shallow_or_narrow_and_deep,
    single_scale_or_not,
    one_stage,
    four_stages,
    one_operator_per_stage,
    attention_is_never_left_again,
    series_or_parallel,
    two_attentions_and_two_ffns,
    norms_and_their_place,
    norm_of_queries_and_keys,
    layer_scale,
)


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: s.__name__)
def test_it_trains_and_can_be_taken_out(statement):
    stated = statement()
    supernet = Supernet(build, stated)
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    for architecture in (stated.largest(), stated.smallest(), *(stated.sample(rng) for _ in range(4))):
        stated.check(architecture)
        supernet(architecture, images, train=True).square().sum().backward()
        with torch.no_grad():
            taken_out = supernet.extract(architecture)(images)
            assert (supernet(architecture, images) - taken_out).abs().max() == 0
    gradients = [p.grad for p in supernet.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def several(statement):
    stated, rng = statement(), np.random.default_rng(0)
    return [stated.sample(rng) for _ in range(60)]


def mixers(architecture):
    return [[type(block.mixer) for block in stage.blocks] for stage in architecture.stages]


def test_twelve_heads_in_all():
    heads = [
        [b.mixer.heads for b in a.stages[0].blocks] for a in several(wide_and_shallow_or_narrow_and_deep)
    ]
    assert {len(h) for h in heads} == {1, 2, 3, 4, 6}
    assert all(sum(h) == 12 for h in heads)
    assert wide_and_shallow_or_narrow_and_deep().size == 2 * sum(2**n for n in (1, 2, 3, 4, 6))


def test_one_operator_per_stage():
    drawn = [mixers(a) for a in several(one_operator_per_stage)]
    assert all(len(set(stage)) == 1 for stages in drawn for stage in stages)
    assert {(stages[0][0], stages[1][0]) for stages in drawn} == {
        (a, b) for a in (DepthwiseConv, Global) for b in (DepthwiseConv, Global)
    }
    block = Block(Global(1), Mlp(1))
    mixed = HierarchicalTransformer(PatchStem(1), (Stage(16, (block, Block(Pooling(3), Mlp(1)))),), 4)
    with pytest.raises(SpaceError, match=r"`stages.0.blocks.1` must mix as the first .* Global: got Pooling"):
        Space(mixed, [Constraint(Block, OneMixerPerStage())]).check(mixed)


def test_attention_is_never_left_again():
    for architecture in several(attention_is_never_left_again):
        order = [mixer is Global for stage in mixers(architecture) for mixer in stage]
        assert order == sorted(order)


def test_a_single_scale_is_among_them():
    drawn = several(single_scale_or_not)
    single = [a for a in drawn if a.stages[1].down is None]
    assert 0 < len(single) < len(drawn)
    assert all(a.stages[0].width == a.stages[1].width for a in single)


def test_sizes_by_hand():
    """Per stage 2 widths, and n or n² blocks of one of two kinds, n = 2 kernels or heads × 3 MLPs."""
    kind = 2 * 3
    stage = 2 * (kind + kind**2)
    assert one_operator_per_stage().size == (2 * stage) ** 2


def test_a_fixed_part_behind_one_that_varies_is_judged_in_time():
    """It has no gene of its own to wait for."""
    stages = (
        Stage(16, (Block(oneof(Pooling(3), Global(1)), Mlp(1)),)),
        Stage(16, (Block(Pooling(3), Mlp(1)),)),
    )
    order = Constraint(Block, NeverGoesBack(late=(Global,), early=(Pooling,)))
    stated = Space(HierarchicalTransformer(PatchStem(1), stages, 4), [order])
    assert stated.size == 1
    assert mixers(stated.largest()) == [[Pooling], [Pooling]]


def test_what_cannot_be_is_never_drawn():
    """Arrangements that a block refuses, and repeats of nothing."""
    block = partial(
        Block,
        topology=oneof("series", "parallel", "joint", "chain"),
        placement=oneof("pre", "post", "sub"),
        ffn2=oneof(None, Mlp(1)),
    )
    stated = of_two_stages(mixers=[DepthwiseConv(3), ATTENTION], block=block)
    rng = np.random.default_rng(0)
    for _ in range(60):
        with torch.device("meta"):
            build(stated.sample(rng))


def test_repeat_of_a_block_in_all_its_forms():
    """Blocks of a stage, as many as it chooses, each with genes of its own: 3 + 3² of them."""
    stages = (Stage(16, repeat(Block(Global(oneof(1, 2, 4)), Mlp(1)), 1, 2)),)
    assert Space(HierarchicalTransformer(PatchStem(1), stages, 4), laws(8)).size == 3 + 3**2
