"""The contract of every layer: what is cut out of a large layer is a small layer, not just its shape.

Every choice that `nas.layers` has is found here by itself, and tried along every gene. A cut layer
answers as the large one does with the cut-away parts zeroed (norms over what is left, softmax scaled
for it). Where a gene changes who sees whom, a small layer is no part of a large one: `OWN_TESTS` names
the test that compares it with a reference written out. Supernet equals extracted holds even for
meaningless slices; only these tests tell.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from layers import cutting
from layers.cutting import cut_module, layouts_of, maps, randomise, zero_what_is_cut_away
from torch import nn
from torch.nn import functional as F

import nas.layers
from nas.errors import LayoutError, SpaceError
from nas.layers import (
    AttentionPosition,
    Block,
    ChannelMixer,
    Downsample,
    Global,
    Mixer,
    NoFfn,
    Norm,
    Position,
    Stem,
    Window,
    genes_of,
)
from nas.layers.catalogue import members
from nas.layers.downsampling.query_pooling import QueryPooling
from nas.layout import Layout, union

WIDTH, SMALL_WIDTH, SIDE = 32, 16, 8

# (class, gene) -> the test that stands in, because the gene changes who sees whom.
OWN_TESTS = {
    ("AftLocal", "window"): "test_attention_free.py",
    ("Spectral", "side"): "test_spectral.py",
    ("StateSpace", "scan"): "test_state_space.py",
    ("Window", "size"): "test_window.py",
    ("Window", "shift"): "test_window.py",
    ("OverlapStem", "patch"): "test_embedding.py",
    ("ConvStem", "depth"): "test_convolution_stem.py",
    ("ConvPatchStem", "patch"): "test_convolution_stem.py",
    ("Pooling", "size"): "test_pooling.py",
    ("SpatialReduction", "ratio"): "test_spatial_reduction.py",
    ("LinearReduction", "pool"): "test_spatial_reduction.py",
    ("CrossShaped", "stripe"): "test_cross_shaped.py",
    ("MaskUnit", "size"): "test_mask_unit.py",
    ("Pooled", "kv_stride"): "test_pooled.py",
    ("Pooled", "span"): "test_pooled.py",
    ("ConvProjection", "kv_stride"): "test_convolutional_projection.py",
    ("ShortDistance", "size"): "test_short_long.py",
    ("LongDistance", "interval"): "test_short_long.py",
    ("Channel", "head_dim"): "test_channel.py",
    ("CrossScaleStem", "patch"): "test_cross_scale.py",
    ("ShiftedPatchStem", "patch"): "test_shifted_patch.py",
    ("DepthwisePooling", "width"): "test_depthwise_pooling.py",
    ("QueryPooling", "kernel"): "test_query_pooling.py",
    ("PatchStem", "patch"): "test_embedding.py",
}


FAMILIES = (Mixer, ChannelMixer, Stem, Downsample, Position, Norm)
CHOICES = [c for family in FAMILIES for c in members(family)]


def largest(choice: type, **fixed):
    """An example with every gene that has no default at its largest value."""
    required = {f.name for f in dataclasses.fields(choice) if f.default is dataclasses.MISSING}
    return choice(**({n: v[-1] for n, v in genes_of(choice).items() if n in required} | fixed))


def build(choice, width: int = WIDTH, out_width: int = 2 * WIDTH) -> nn.Module:
    if isinstance(choice, Stem):
        return choice.build(3, width)
    if isinstance(choice, QueryPooling):
        return Block(Global(4), NoFfn()).build_pooling(width, out_width, choice)
    return choice.build(width, out_width) if isinstance(choice, Downsample) else choice.build(width)


def inputs(choice, width: int = WIDTH, side: int = SIDE) -> torch.Tensor:
    return maps(3, side).permute(0, 3, 1, 2) if isinstance(choice, Stem) else maps(width, side)


def run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = module(x)
    return y[0] if isinstance(y, tuple) else y


AXES = [(c, n) for c in CHOICES for n, values in genes_of(c).items() if len(values) > 1]


def stands_in(choice: type, axis: str) -> bool:
    """Whether another test, which must be there, takes this one's place."""
    name = OWN_TESTS.get((choice.__name__, axis))
    if name is None:
        return False
    text = (Path(__file__).parent / name).read_text()
    assert f"{choice.__name__}(" in text, name
    return True


def assert_cut(large, small, x: torch.Tensor) -> None:
    """The contract: `small`, cut from `large` (two functions that build them), answers as it does with
    the rest zeroed. Inputs beyond the small one's width are zero."""
    big = randomise(large())
    little = cut_module(big, small().double())
    zeroed = zero_what_is_cut_away(big, little)
    y = run(little, x)
    wide = x if x.shape[1] == 3 else F.pad(x, (0, WIDTH - x.shape[-1]))  # images have three channels
    torch.testing.assert_close(y, run(zeroed, wide)[..., : y.shape[-1]])


@pytest.mark.parametrize(("choice", "gene"), AXES, ids=[f"{c.__name__}-{n}" for c, n in AXES])
def test_cut_along_a_gene(choice, gene):
    if stands_in(choice, gene):
        return
    values = genes_of(choice)[gene]
    for value in values[:-1]:
        large, small = (largest(choice, **{gene: v}) for v in (values[-1], value))
        assert_cut(lambda: build(large), lambda: build(small), inputs(small))  # noqa: B023


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.__name__)
def test_cut_along_the_width(choice):
    spec = largest(choice)
    if stands_in(choice, "width"):
        return
    for width, out in ((SMALL_WIDTH, 2 * WIDTH), (WIDTH, WIDTH), (SMALL_WIDTH, SMALL_WIDTH)):
        x = inputs(spec, width)
        assert_cut(lambda: build(spec), lambda: build(spec, width, out), x)  # noqa: B023


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("side", [4, 8, 10, 12, 16])
def test_any_side_or_a_clear_error(choice, side):
    spec = largest(choice)
    module = randomise(build(spec))
    x = inputs(spec, side=side)
    if spec.misfit(side, side):
        with pytest.raises(SpaceError, match=str(side)):
            module(x)
        return
    stride = getattr(spec, "stride", 1)
    assert run(module, x).shape[1:3] == (side // stride, side // stride)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.__name__)
def test_maps_that_are_not_square(choice):
    spec = largest(choice)
    x = inputs(spec, side=16)
    x = x[:, :, :8] if isinstance(spec, Stem) else x[:, :8]
    stride = getattr(spec, "stride", 1)
    if not spec.misfit(8, 16):
        assert run(randomise(build(spec)), x).shape[1:3] == (8 // stride, 16 // stride)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.__name__)
def test_every_weight_is_used(choice):
    module = randomise(build(largest(choice))).train()
    y = module(inputs(largest(choice)))
    y = y[0] if isinstance(y, tuple) else y
    if list(module.parameters()):
        torch.autograd.backward(y.square().sum())
    unused = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [n for n in unused if not n.startswith("k.bias")], "softmax ignores a key bias, nothing else"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
def test_shared_names_have_the_same_axes(family):
    shared: dict[str, Layout] = {}
    for choice in members(family):
        for name, layout in layouts_of(build(largest(choice))).items():
            shared[name] = union(name, shared.get(name, layout), layout)


@pytest.mark.parametrize(
    "choice", [c for c in CHOICES if issubclass(c, (Mixer, ChannelMixer))], ids=lambda c: c.__name__
)
@pytest.mark.parametrize("placement", ["pre", "post", "sub"])
@pytest.mark.parametrize("topology", ["series", "parallel", "joint", "chain"])
def test_blocks_of_everything(choice, placement, topology):
    """Every mixer and channel mixer stands in every block, or the block says why not."""
    part = {"mixer": largest(choice)} if issubclass(choice, Mixer) else {"ffn": largest(choice)}
    block = Block(
        **({"mixer": Window(2, 4), "ffn": nas.layers.Mlp(2)} | part), placement=placement, topology=topology
    )
    try:
        module = block.build(WIDTH)
    except SpaceError:
        return
    y = run(randomise(module), maps(WIDTH))
    assert y.shape == maps(WIDTH).shape


@pytest.mark.parametrize("position", members(AttentionPosition), ids=lambda c: c.__name__)
@pytest.mark.parametrize("axis", ["heads", "head_dim", "value_dim", "width"])
def test_cut_positions_in_attention(position, axis):
    def make(width=WIDTH, heads=4, head_dim=16, value_dim=16):
        return Window(heads, 4, head_dim=head_dim, value_dim=value_dim, position=largest(position)).build(
            width
        )

    small_value = {"heads": 2, "head_dim": 8, "value_dim": 8, "width": SMALL_WIDTH}[axis]
    if (position.__name__, axis) in OWN_TESTS:
        assert (Path(__file__).parent / OWN_TESTS[position.__name__, axis]).is_file()
        return
    width = SMALL_WIDTH if axis == "width" else WIDTH
    assert_cut(make, lambda: make(**{axis: small_value}), maps(width))


def own(choice: type) -> set[str]:
    return {gene for name, gene in OWN_TESTS if name == choice.__name__}


def merged(choice: type) -> bool:
    """Whether a module of the choice declares a layout that is no plain prefix, and is tried here."""
    module = build(largest(choice))
    genes = {gene for cls, gene in AXES if cls is choice}
    elsewhere = "head_dim" in own(choice) or bool(genes and genes <= own(choice))
    return layouts_of(module) != plain_layouts(module) and not elsewhere


def plain_layouts(module: nn.Module) -> dict[str, Layout]:
    return {n: Layout(tuple(p.shape)) for n, p in module.named_parameters()}


@pytest.mark.parametrize("choice", filter(merged, CHOICES), ids=lambda c: c.__name__)
def test_a_wrong_layout_is_caught(choice, monkeypatch):
    """With plain prefixes in the place of the layouts that a layer declares, the contract fails."""
    monkeypatch.setattr(cutting, "layouts_of", plain_layouts)

    def contract():
        for cls, gene in AXES:
            if cls is choice and gene not in own(choice):
                test_cut_along_a_gene(choice, gene)
        test_cut_along_the_width(choice)

    with pytest.raises((AssertionError, LayoutError)):
        contract()
