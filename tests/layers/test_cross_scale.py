"""Convolutions of several sizes side by side: a channel's number says its scale, for stems and in between."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import assert_roles, convolution, layer_norm, rectangle
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.cross_scale import CrossScale
from nas.layers.downsampling.cross_scale import CrossScaleDownsample
from nas.layers.stems.cross_scale import CrossScaleStem

CHANNELS, WIDTH, OUT = 3, 16, 24


def scale_and_number(channel: int, scales: int) -> tuple[int, int]:
    """Scale of a channel and how many of it come before: 0 1 0 2 0 1 0 2 … of three."""

    def scale(n: int) -> int:
        twos = 0
        while n % 2 == 0 and twos < scales - 1:
            n, twos = n // 2, twos + 1
        return twos

    mine = scale(channel + 1)
    return mine, sum(scale(n) == mine for n in range(1, channel + 1))


def literal(x: Tensor, cross: nn.Module, stride: int, kernels: tuple[int, ...], width: int) -> Tensor:
    """The first `width` channels, each by the convolution that makes it (CrossFormer, Wang et al., 2022,
    §3.1); the kernels are centred on the same patch."""
    made = []
    for channel in range(width):
        scale, number = scale_and_number(channel, len(kernels))
        k, conv = kernels[scale], cross.scales[f"k{kernels[scale]}"]
        weight = conv.weight[number : number + 1, : x.shape[-1]]
        made.append(convolution(x, weight, conv.bias[number : number + 1], stride, (k - stride) // 2))
    return torch.cat(made, -1)


@pytest.mark.parametrize(
    ("scales", "pattern"), [(1, "0000"), (2, "01010101"), (3, "01020102"), (4, "01020103")]
)
def test_channels_are_dealt_out_in_turn(scales, pattern):
    """One half, one quarter, … and the last as many as the one before."""
    dealt = "".join(str(scale_and_number(c, scales)[0]) for c in range(len(pattern)))
    assert dealt == pattern
    shares = [c.out_channels for c in CrossScale(3, 16, (4, 8, 16, 32)[:scales], 4).scales.values()]
    assert shares == {1: [16], 2: [8, 8], 3: [8, 4, 4], 4: [8, 4, 2, 2]}[scales]


# --- stem ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(8, 8), (4, 12)])
@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize("scales", [1, 2, 3])
@pytest.mark.parametrize("width", [WIDTH, 8])
def test_a_stem_sees_patches_of_several_sizes(width, scales, patch, sides):
    large = randomise(CrossScaleStem(patch, scales=scales).build(CHANNELS, WIDTH))
    small = cut_module(large, CrossScaleStem(patch, scales=scales).build(CHANNELS, width))
    x, kernels = rectangle(CHANNELS, *sides), tuple(patch * 2**i for i in range(scales))
    y = literal(x, large.get_submodule(f"patch{patch}"), patch, kernels, width)
    expected = layer_norm(y, large.norm, slice(width))
    assert expected.shape == (2, sides[0] // patch, sides[1] // patch, width)
    torch.testing.assert_close(small(x.permute(0, 3, 1, 2)), expected)


@pytest.mark.parametrize("patch", [2, 4])
def test_a_stem_without_norm(patch):
    stem = randomise(CrossScaleStem(patch, norm=None).build(CHANNELS, WIDTH))
    x = rectangle(CHANNELS, 4, 8)
    y = literal(x, stem.get_submodule(f"patch{patch}"), patch, (patch, 2 * patch, 4 * patch), WIDTH)
    torch.testing.assert_close(stem(x.permute(0, 3, 1, 2)), y)
    assert not [n for n, _ in stem.named_parameters() if "norm" in n]


def test_patches_share_nothing_but_the_norm():
    two, four = ({n for n, _ in CrossScaleStem(p).build(CHANNELS, WIDTH).named_parameters()} for p in (2, 4))
    assert two & four == {"norm.weight", "norm.bias"}
    assert all(n.startswith("patch2.") for n in two - four)


def stem_codes(stem: nn.Module) -> dict[str, Tensor]:
    return {f"patch2.{n}": t for n, t in codes(stem.get_submodule("patch2")).items()}


def codes(cross: nn.Module) -> dict[str, Tensor]:
    """By the channel that a row makes, and not by the row."""
    places = [scale_and_number(c, len(cross.kernels)) for c in range(cross.width)]
    roles = {}
    for scale, k in enumerate(cross.kernels):
        mine = torch.tensor([c for c, (s, _) in enumerate(places) if s == scale])
        row, channel, dy, dx = grid(*cross.scales[f"k{k}"].weight.shape)
        roles[f"scales.k{k}.weight"] = code(mine[row], channel, dy, dx)
        roles[f"scales.k{k}.bias"] = code(mine)
    return roles


def test_fewer_channels_keep_their_scales():
    large, small = CrossScaleStem(2).build(CHANNELS, WIDTH), CrossScaleStem(2).build(CHANNELS, 8)
    assert_roles(stem_codes, large, small)
    assert_roles(codes, CrossScale(8, 24, (2, 4, 8), 2), CrossScale(5, 12, (2, 4, 8), 2))


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 6), (5, 5)])
def test_images_that_do_not_fit_are_refused(height, width):
    assert f"CrossScaleStem got {height}×{width}" in CrossScaleStem(4).misfit(height, width)
    with pytest.raises(SpaceError, match=f"A stem must get .* multiples of 4: .*{height}×{width}"):
        CrossScaleStem(4).build(CHANNELS, WIDTH)(torch.zeros(1, CHANNELS, height, width))
    assert CrossScaleStem(4).misfit(8, 12) is None
    assert CrossScaleStem(4).stride == 4


# --- between stages -----------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(4, 4), (2, 6), (8, 2)])
@pytest.mark.parametrize("kernels", [(2,), (2, 4), (2, 4, 8)])
@pytest.mark.parametrize(("width", "out"), [(WIDTH, OUT), (10, OUT), (WIDTH, 12), (10, 12)])
def test_downsampling_sees_neighbourhoods_of_several_sizes(width, out, kernels, sides):
    large = randomise(CrossScaleDownsample(kernels).build(WIDTH, OUT))
    small = cut_module(large, CrossScaleDownsample(kernels).build(width, out))
    x = rectangle(width, *sides)
    y = literal(layer_norm(x, large.norm, slice(width)), large.cross, 2, kernels, out)
    assert y.shape == (2, sides[0] // 2, sides[1] // 2, out)
    torch.testing.assert_close(small(x), y)


@pytest.mark.parametrize(("height", "width"), [(5, 4), (4, 5), (3, 3)])
def test_maps_that_do_not_fit_are_refused(height, width):
    assert f"CrossScaleDownsample got {height}×{width}" in CrossScaleDownsample().misfit(height, width)
    with pytest.raises(
        SpaceError, match=f"Cross-scale embedding must get .*multiples of 2: .*{height}×{width}"
    ):
        CrossScaleDownsample().build(WIDTH, OUT)(torch.zeros(1, height, width, WIDTH))
    assert CrossScaleDownsample().misfit(4, 6) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossScaleStem(4).build(3, 10), r"multiple of 4 .*: got width=10, kernels=\(4, 8, 16\)"),
        (lambda: CrossScaleDownsample().build(8, 9), r"multiple of 2 .*: got width=9, kernels=\(2, 4\), str"),
        (lambda: CrossScaleDownsample((2, 5)).build(8, 8), r"even numbers: got width=8, kernels=\(2, 5\)"),
        (lambda: CrossScaleDownsample((1, 2)).build(8, 8), r"exceed the stride.*kernels=\(1, 2\), stride=2"),
        (lambda: CrossScaleStem(1).build(3, 8), r"even numbers: got width=8, kernels=\(1, 2, 4\), stride=1"),
    ],
    ids=["width", "out width", "odd", "smaller than the stride", "patch of 1"],
)
def test_widths_and_kernels_that_do_not_fit_are_refused(make, message):
    with pytest.raises(SpaceError, match=message):
        make()
