"""Stems of several convolutions, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import assert_roles, batch_norm, convolution, gelu, layer_norm, rectangle
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import LayerNorm
from nas.layers.stems.convolution import ConvPatchStem, ConvStem

WIDTH = 8
SIDES = [(8, 16), (24, 8)]


def image(height: int, width: int) -> Tensor:
    """(2, 3, height, width)"""
    return rectangle(3, height, width).permute(0, 3, 1, 2)


def with_statistics(stem: nn.Module) -> nn.Module:
    """With batch norms that have seen something."""
    generator = torch.Generator().manual_seed(3)
    for name, buffer in stem.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + name.endswith("var"))
    return stem


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_convolution_halves_the_map_and_doubles_the_width(depth, sides):
    stem = with_statistics(randomise(ConvStem(depth).build(3, WIDTH)))
    x = image(*sides)
    y = x.permute(0, 2, 3, 1)
    for i in range(depth):
        layer = stem.layers[f"{i}_of_{depth}"]
        y = convolution(y, layer["conv"].weight, layer["conv"].bias, stride=2, padding=1)
        assert y.shape[1:] == (sides[0] >> i + 1, sides[1] >> i + 1, WIDTH >> depth - 1 - i)
        y = batch_norm(y, layer["norm"]).clamp(min=0)
    torch.testing.assert_close(stem(x), y)


@pytest.mark.parametrize("width", [4, 8])
def test_a_narrow_stem_is_the_first_channels_of_every_layer(width):
    spec = ConvStem(2, norm=LayerNorm(), activation="gelu")
    large = randomise(spec.build(3, 16))
    small, x = cut_module(large, spec.build(3, width)), image(8, 4)
    y, inputs = x.permute(0, 2, 3, 1), 3
    for i, out in enumerate((width // 2, width)):
        layer = large.layers[f"{i}_of_2"]
        y = convolution(y, layer["conv"].weight[:out, :inputs], layer["conv"].bias[:out], 2, 1)
        y, inputs = gelu(layer_norm(y, layer["norm"], slice(out))), out
    torch.testing.assert_close(small(x), y)


def test_depths_share_nothing():
    one, two, three = ({n for n, _ in ConvStem(d).build(3, 8).named_parameters()} for d in (1, 2, 3))
    assert len(one | two | three) == len(one) + len(two) + len(three)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("patch", "features"), [(1, 8), (2, 8), (2, 4), (4, 8)])
def test_patches_of_what_a_wide_convolution_makes(patch, features, sides):
    """Cut from patches of 4: the pixels of the upper left corner, and the first features."""
    large = randomise(ConvPatchStem(4, features=8, norm=LayerNorm()).build(3, WIDTH))
    small = cut_module(large, ConvPatchStem(patch, features=features, norm=LayerNorm()).build(3, WIDTH))
    x = image(*sides)
    y = convolution(x.permute(0, 2, 3, 1), large.early.weight[:features], stride=2, padding=3)
    y = layer_norm(y, large.early_norm, slice(features)).clamp(min=0)
    weight = large.early_patches.weight[:, :features, :patch, :patch]
    y = layer_norm(convolution(y, weight, large.early_patches.bias, stride=patch), large.norm)
    assert y.shape == (2, sides[0] // patch // 2, sides[1] // patch // 2, WIDTH)
    torch.testing.assert_close(small(x), y)


def test_patches_after_batch_norm():
    stem = with_statistics(randomise(ConvPatchStem(2, features=4).build(3, WIDTH)))
    x = image(8, 12)
    y = batch_norm(
        convolution(x.permute(0, 2, 3, 1), stem.early.weight, stride=2, padding=3), stem.early_norm
    )
    y = convolution(y.clamp(min=0), stem.early_patches.weight, stem.early_patches.bias, stride=2)
    torch.testing.assert_close(stem(x), batch_norm(y, stem.norm))


def patch_roles(stem: nn.Module) -> dict[str, Tensor]:
    return {"early_patches.weight": code(*grid(*stem.early_patches.weight.shape))}


def test_smaller_patches_keep_the_offsets_of_their_pixels():
    large, small = ConvPatchStem(4, features=8).build(3, 16), ConvPatchStem(2, features=4).build(3, 8)
    assert_roles(patch_roles, large, small)


@pytest.mark.parametrize(
    ("stem", "step"), [(ConvStem(1), 2), (ConvStem(2), 4), (ConvPatchStem(1), 2), (ConvPatchStem(4), 8)]
)
def test_images_that_do_not_fit_are_refused(stem, step):
    assert stem.stride == step
    assert stem.after(3 * step) == 3
    assert stem.misfit(step, 3 * step) is None
    name = type(stem).__name__
    for sides in ((step, step + 1), (step + 1, step)):
        told = f"multiples of {step}: {name} got {sides[0]}×{sides[1]}"
        assert told in stem.misfit(*sides)
        with pytest.raises(SpaceError, match=f"A stem must get .*{told}"):
            stem.build(3, WIDTH)(torch.zeros(1, 3, *sides))
