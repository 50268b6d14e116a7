"""What no architecture may be: said with the law, the facts, the path and the remedy, and never sampled."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hierarchical.spaces import (
    SIDE,
    every_arrangement,
    every_entry,
    every_mixer,
    every_position,
    every_token,
)

from nas.errors import DataError, LayoutError, SpaceError
from nas.layers import (
    Block,
    ChannelMixer,
    Global,
    LayerNorm,
    Mixer,
    Mlp,
    NoFfn,
    NoMixer,
    PatchMerging,
    PatchStem,
    Window,
)
from nas.layers.catalogue import members
from nas.layers.downsampling.convolution import ConvDownsample
from nas.layers.downsampling.depthwise_pooling import DepthwisePooling
from nas.layers.downsampling.query_pooling import QueryPooling
from nas.layers.mixers.channel import Channel
from nas.layers.mixers.pooled import Pooled
from nas.layers.mixers.pooling import Pooling
from nas.layers.stems.convolution import ConvStem
from nas.quantize import AtBits
from nas.space import Constraint, Space, oneof, repeat
from nas.supernet import Supernet
from search_spaces import hierarchical
from search_spaces.hierarchical import ClassToken, HierarchicalTransformer, Stage, laws
from search_spaces.laws import NeverGoesBack, OneMixerPerStage


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


# --- the laws and what runs -------------------------------------------------------------------------

STRICTER = (
    "must leave more than one window to shift",
    "must do something",
    "must have weights of 4 or 8 bits",
)
"""What runs, and is refused all the same: it would be another architecture under another name. (Bits that do
not go together are refused by the builder, too, where there are weights.)"""


def failure(architecture) -> str | None:
    """What is said where it is built and run."""
    try:
        with torch.inference_mode():  # in earnest: on small maps that is quicker than PyTorch's "meta"
            y = AtBits(hierarchical.build)(architecture).eval()(torch.zeros(2, 3, SIDE, SIDE))
    except SpaceError as error:
        return str(error)
    assert y.shape == (2, architecture.classes)
    return None


def refusal(space: Space, architecture) -> str | None:
    try:
        space.check(architecture)
    except SpaceError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("stated", "n"),
    [
        (every_mixer, 80),
        (every_entry, 80),
        (every_arrangement, 120),
        (every_token, 40),
        (every_position, 250),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_laws_refuse_what_does_not_run_and_nothing_else(stated, n):
    space = stated()
    anything, rng = Space(space.template), np.random.default_rng(0)
    verdicts = set()
    for _ in range(n):
        assert failure(space.sample(rng)) is None
        architecture = anything.sample(rng)
        refused = refusal(space, architecture)
        verdicts.add(refused is None)
        if refused is None or not any(law in refused for law in STRICTER):
            assert (failure(architecture) is None) == (refused is None), refused
    assert True in verdicts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": (0, 8)}, "`weight` of Bits must be one of 2, 4, 8, 16, 32: got 0"),
        ({"bits": ()}, r"`bits` must be a tuple that is not empty: got \(\)"),
        ({"heads": (0, 1)}, "`heads` of Window must be a whole number of at least 1: got 0"),
        ({"heads": "4"}, "`heads` must be a tuple that is not empty: got '4'"),
        ({"ratios": (-1,)}, "`ratio` of Mlp must be a number above 0: got -1"),
        ({"widths": ()}, r"`widths` must hold a tuple of choices for each stage, .*: got \(\)"),
        ({"widths": ((8,), ())}, r"`widths` must hold a tuple of choices for each stage"),
        ({"widths": (8, 16)}, r"for each stage, such as \(\(16, 32\), .*: got \(8, 16\)"),
        ({"widths": 8}, "for each stage, .*: got 8"),
        ({"depths": (1.5, 2)}, "`depths` must be the fewest and the most"),
        ({"depths": "12"}, "`depths` must be the fewest and the most"),
        (
            {"windows": (2, 3)},
            "must divide a map: got 3, where maps have sides of 8, 4. Leave it out",
        ),
        ({"block": Block(Global(1), Mlp(1))}, "`block` must make a Block of a mixer"),
        ({"block": None}, "`block` must make a Block of a mixer"),
        ({"constraints": None}, "`constraints` must be instances of Constraint, .*: got None"),
        ({"constraints": [len]}, "`constraints` must be instances of Constraint, .*: got <built-in"),
        ({"widths": ((0, 8),)}, "`width` of Stage must be a whole number of at least 1: got 0"),
        ({"depths": 3}, r"`depths` must be the fewest and the most blocks of a stage, .*: got 3"),
        ({"mixers": ()}, "`mixers` must be a tuple that is not empty"),
        ({"mixers": [Global]}, "`mixers` must hold instances of Mixer, .* such as Global.*: got <class"),
        ({"mixers": ["window"]}, "`mixers` must hold instances of Mixer, .*: got 'window'"),
        ({"ffns": Mlp(1)}, "`ffns` must be a tuple that is not empty: got Mlp"),
        ({"patch": 0}, "`patch` of OverlapStem must be a whole number of at least 1: got 0"),
        ({"patch": 3}, "leave none: `stem` must get a map whose sides are multiples of 3"),
        (
            {"mixers": [Global(1), Window(1, oneof(3, 5))]},
            r"fit a map: Window\(.*\) fits none of the sides 8, 4\. It must divide .* got size=3 on 8×8",
        ),
        ({"position": "absolute"}, "`position` of Stage must be a Position: got 'absolute'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_space_are_refused(arguments, message):
    class Task:
        classes, image_shape = 3, (1, 8, 8)

    with pytest.raises(SpaceError, match=message):
        hierarchical.space(Task, **arguments)


def test_more_stages_than_a_side_can_be_halved():
    class Task:
        classes, image_shape = 3, (1, 24, 24)

    with pytest.raises(
        DataError, match=r"multiple of 16, so that 5 stages .*: got 24\. Resize them, to 32 say"
    ):
        hierarchical.space(Task, widths=((8,),) * 5)


def test_a_space_without_a_choice_keeps_to_its_laws():
    stage = Stage(16, (Block(Window(1, 3), Mlp(1)),))
    with pytest.raises(SpaceError, match=r"`stages\.0\.blocks\.0\.mixer` must divide the feature map"):
        Space(HierarchicalTransformer(PatchStem(1), (stage,), classes=3), laws(8))


@pytest.mark.parametrize("shape", [None, (8, 8), (1, 8.0, 8.0), (1, 0, 0), "188"])
def test_tasks_without_images_are_refused(shape):
    class Task:
        classes, image_shape = 3, shape

    with pytest.raises(DataError, match="must have `image_shape`, whole numbers"):
        hierarchical.space(Task)


@pytest.mark.parametrize(
    ("choice", "fixed", "message"),
    [
        (Global(2), {}, "must be given a class of choices that can be built, such as Window: got Global"),
        (int, {}, "must be given a class of choices"),
        (Mixer, {}, "must be given a class of choices that can be built, .*: got <class .*Mixer"),
        (Global, {"size": 3}, "Global must have what is fixed: size is not among"),
        (Block, {}, "`mixer` of Block must be fixed: it has no values of its own"),
    ],
)
def test_holes_for_what_has_none(choice, fixed, message):
    with pytest.raises(SpaceError, match=message):
        hierarchical.with_holes(choice, **fixed)


@pytest.mark.parametrize("on", ["Block", None, Block(Global(1), Mlp(1))])
def test_a_constraint_is_on_a_class(on):
    with pytest.raises(SpaceError, match="A constraint must be on a class, with a function as its rule"):
        Constraint(on, lambda part, context: None)


def test_what_has_no_weights_has_one_name_at_all_bits():
    class Task:
        classes, image_shape = 3, (1, 8, 8)

    few = {"depths": (1, 1), "widths": ((16,),), "ffns": (Mlp(1),)}
    space = hierarchical.space(Task, mixers=(NoMixer(), Pooling(3)), bits=(4, 8, 32), **few)
    assert space.size == 2 * 3  # mixers; bits of the MLP


def test_the_first_stage_follows_the_stem():
    block = Block(Window(1, oneof(2, 4, 8)), Mlp(1))
    stage = Stage(16, (block,), oneof(None, PatchMerging(), QueryPooling()))
    space = Space(HierarchicalTransformer(PatchStem(1), (stage,), 3), laws(8))
    assert space.size == 3
    first = Stage(16, (Block(Window(1, 2), Mlp(1)),), PatchMerging())
    with pytest.raises(SpaceError, match=r"`stages\.0` must have down=None, .*: got PatchMerging"):
        space.check(HierarchicalTransformer(PatchStem(1), (first,), 3))


def test_a_first_stage_is_not_built_with_what_it_would_leave_out():
    first = Stage(16, (Block(Window(1, 2), Mlp(1)),), PatchMerging())
    with pytest.raises(SpaceError, match=r"The first stage must have down=None, .*: got PatchMerging"):
        hierarchical.build(HierarchicalTransformer(PatchStem(1), (first,), 3))


@pytest.mark.parametrize(
    ("stage", "path"),
    [
        (Stage(16, (Block(Global(oneof(1, 2)), Mlp(1)),)), "stages.0.blocks.0.mixer.heads"),
        (Stage(16, (Block(oneof(Global(1), Global(2)), Mlp(1)),)), "stages.0.blocks.0.mixer"),
        (Stage(16, repeat(Block(Global(1), Mlp(1)), 1, 2)), "stages.0.blocks"),
        (Stage(oneof(8, 16), (Block(Global(1), Mlp(1)),)), "stages.0.width"),
    ],
)
def test_holes_are_not_built(stage, path):
    with pytest.raises(SpaceError, match=f"a whole architecture, but there is a hole at `{path}`"):
        hierarchical.build(HierarchicalTransformer(PatchStem(1), (stage,), 3))


def test_what_is_no_architecture_is_not_built():
    with pytest.raises(SpaceError, match="must be given a HierarchicalTransformer: got 'swin'"):
        hierarchical.build("swin")


def at_most(monkeypatch, judgements: int) -> None:
    """Lets laws be judged so often while a space is counted."""
    left, passes = judgements, Space._passes

    def counted(self, *arguments):
        nonlocal left
        left -= 1
        assert left > 0
        return passes(self, *arguments)

    monkeypatch.setattr(Space, "_passes", counted)


def test_arrangements_beside_all_mixers_are_counted_in_time(monkeypatch):
    """A law whose message shows a whole part reads all its genes, and counting never ends."""

    class Task:
        classes, image_shape = 5, (3, 16, 16)

    at_most(monkeypatch, 90_000)  # 43,440 when written; four times that where a message shows its `ffn`
    block = partial(
        Block, topology=oneof("series", "parallel", "joint", "chain"), placement=oneof("pre", "post", "sub")
    )
    mixers, ffns = ([hierarchical.with_holes(c) for c in members(f)] for f in (Mixer, ChannelMixer))
    space = hierarchical.space(Task, mixers=mixers[:8], ffns=ffns, depths=(0, 2), block=block)
    assert space.size > 1e20


def test_never_going_back_is_counted_in_time(monkeypatch):
    """The nearest block that the law is about says all; to look at every earlier one would take for ever."""

    class Task:
        classes, image_shape = 5, (3, 64, 64)

    at_most(monkeypatch, 12_000)  # 5,586 when written
    order = Constraint(Block, NeverGoesBack(late=(Global,), early=(Pooling,)))
    mixers = Pooling(3), Global(oneof(1, 2, 4))
    stated = {"widths": ((16, 32),) * 4, "depths": (1, 4), "bits": (32,), "mixers": mixers}
    assert hierarchical.space(Task, **stated, constraints=[order]).size > 1e10


@pytest.mark.parametrize("topology", ["series", "joint", "chain", "parallel"])
def test_no_mixer_beside_a_class_token(topology):
    blocks = Block(NoMixer(), Mlp(2), topology=topology), Block(Global(2), Mlp(2))
    stage = Stage(16, blocks, token=ClassToken())
    architecture = HierarchicalTransformer(PatchStem(2), (stage,), 4, head=hierarchical.Head("token"))
    assert Space(architecture, laws(8)).size == 1
    assert hierarchical.build(architecture)(torch.rand(2, 1, 8, 8)).shape == (2, 4)


def test_large_patches_are_told_of():
    class Task:
        classes, image_shape = 5, (3, 224, 224)

    with pytest.warns(UserWarning, match="Images of 224 pixels are cut into patches of 28 × 28"):
        hierarchical.space(Task)


def test_a_head_finds_its_token():
    stage = Stage(16, (Block(Global(1), Mlp(1)),), token=oneof(None, ClassToken()))
    head = hierarchical.Head(pool=oneof("token", "mean"))
    assert Space(HierarchicalTransformer(PatchStem(2), (stage,), 3, 1, head), laws(8)).size == 3


def test_no_stage_is_no_transformer():
    with pytest.raises(SpaceError, match="`stages` of HierarchicalTransformer must hold one or more"):
        HierarchicalTransformer(PatchStem(1), (), 3)


def test_narrow_stems_are_refused():
    stage = Stage(oneof(2, 3, 4, 8), (Block(Global(1), Mlp(1)),))
    assert Space(HierarchicalTransformer(ConvStem(3), (stage,), 3), laws(8)).size == 2


def test_kernels_of_both_parities_are_refused_when_the_bank_is_made():
    stages = Stage(8, (Block(Global(1), Mlp(1)),)), Stage(8, (), ConvDownsample(oneof(2, 3)))
    space = Space(HierarchicalTransformer(PatchStem(1), stages, 3), laws(8))
    with pytest.raises(LayoutError, match=r"all odd or all even: got . and .*Choose values of one kind"):
        Supernet(hierarchical.build, space)


def test_orders_see_the_second_mixer_too():
    block = Block(oneof(Global(1), Pooling(3)), Mlp(1), mixer2=oneof(None, Global(1), Pooling(3)))
    stage = Stage(16, (block, block))
    template = HierarchicalTransformer(PatchStem(1), (stage,), 3)
    order = Constraint(Block, NeverGoesBack(late=(Global,), early=(Pooling,)))
    rng, space = np.random.default_rng(0), Space(template, [order])
    for _ in range(50):
        first, second = space.sample(rng).stages[0].blocks
        attends = any(isinstance(m, Global) for m in (first.mixer, first.mixer2))
        assert not attends or not any(isinstance(m, Pooling) for m in (second.mixer, second.mixer2))
    same = Space(template, [Constraint(Block, OneMixerPerStage())])
    for _ in range(50):
        first, second = same.sample(rng).stages[0].blocks
        assert type(first.mixer) is type(second.mixer)
        assert type(first.mixer2) is type(second.mixer2)


@pytest.mark.parametrize(("mixer", "genes"), [(Channel, (2,)), (Pooled, (2, 2))])
def test_norms_of_queries_and_keys_where_there_are_others(mixer, genes):
    """They would be weights that nothing reads."""
    with pytest.raises(SpaceError, match=f"`qk_norm` of {mixer.__name__} must be None"):
        mixer(*genes, qk_norm=LayerNorm())


@pytest.mark.parametrize("side", ["8", 0, 8.0])
def test_laws_are_for_a_side(side):
    with pytest.raises(SpaceError, match="`image_side` must be a whole number of pixels"):
        laws(side)
