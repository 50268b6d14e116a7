"""Patches of an image and of four moved copies, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import assert_roles, rectangle
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import RMSNorm
from nas.layers.stems.shifted_patch import SHIFTS, ShiftedPatchStem

CHANNELS, WIDTH = 3, 8
DIAGONALS = [(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]  # where a copy went: down and right are positive


def pixel(x: Tensor, row: int, column: int, channel: int) -> Tensor:
    """Of an image (B, H, W, C); 0 beyond its edges."""
    inside = 0 <= row < x.shape[1] and 0 <= column < x.shape[2]
    return x[:, row, column, channel] if inside else torch.zeros_like(x[:, 0, 0, 0])


def patch_of(x: Tensor, r: int, c: int, size: int) -> Tensor:
    """What the patch in row r and column c sees, (B, pixels): by copy, channel, row and column."""
    by = size // 2 or 1
    return torch.stack(
        [
            pixel(x, r * size + i - dy * by, c * size + j - dx * by, channel)
            for dy, dx in DIAGONALS
            for channel in range(CHANNELS)
            for i in range(size)
            for j in range(size)
        ],
        -1,
    )


def kept_pixels(large: int, small: int) -> list[int]:
    """Places of a smaller patch's pixels among those of a larger one."""
    copy, channel, i, j = grid(len(DIAGONALS), CHANNELS, small, small)
    return (((copy * CHANNELS + channel) * large + i) * large + j).flatten().tolist()


def literal(x: Tensor, layer: nn.Module, large: int, size: int, width: int) -> Tensor:
    """With the weights of the large stem that a smaller one of that patch and width has."""
    kept = kept_pixels(large, size)
    weight, bias = layer.shifted.weight[:width, kept], layer.shifted.bias[:width]
    norm = layer.shifted_norm
    y = x.new_zeros(len(x), x.shape[1] // size, x.shape[2] // size, width)
    for r in range(y.shape[1]):
        for c in range(y.shape[2]):
            seen = patch_of(x, r, c, size)
            centred = seen - seen.mean(-1, keepdim=True)
            deviation = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            y[:, r, c] = (centred / deviation * norm.weight[kept] + norm.bias[kept]) @ weight.T + bias
    return y


def test_copies_are_the_image_and_its_diagonals():
    assert list(SHIFTS) == DIAGONALS


@pytest.mark.parametrize("sides", [(8, 8), (4, 12)])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("width", [WIDTH, 5])
def test_patches_see_beyond_their_edges(width, size, sides):
    large = randomise(ShiftedPatchStem(4).build(CHANNELS, WIDTH))
    small = cut_module(large, ShiftedPatchStem(size).build(CHANNELS, width))
    x = rectangle(CHANNELS, *sides)
    y = small(x.permute(0, 3, 1, 2))
    assert y.shape == (2, sides[0] // size, sides[1] // size, width)
    torch.testing.assert_close(y, literal(x, large, 4, size, width))


def test_an_odd_patch_moves_by_half_of_it_rounded_down():
    layer, x = randomise(ShiftedPatchStem(3).build(CHANNELS, WIDTH)), rectangle(CHANNELS, 3, 6)
    torch.testing.assert_close(layer(x.permute(0, 3, 1, 2)), literal(x, layer, 3, 3, WIDTH))


def test_another_norm():
    layer, x = randomise(ShiftedPatchStem(2, norm=RMSNorm(1e-3)).build(CHANNELS, WIDTH)), rectangle(3, 2, 4)
    y = layer(x.permute(0, 3, 1, 2))
    for c in range(2):
        seen = patch_of(x, 0, c, 2)
        normed = seen / (seen.square().mean(-1, keepdim=True) + 1e-3).sqrt() * layer.shifted_norm.weight
        torch.testing.assert_close(y[:, 0, c], normed @ layer.shifted.weight.T + layer.shifted.bias)


@pytest.mark.parametrize("size", [2, 4])
def test_a_bright_pixel_is_seen_by_patches_within_half_their_side(size):
    layer = ShiftedPatchStem(size, norm=RMSNorm(1.0)).build(1, 1)
    nn.init.ones_(layer.shifted.weight)
    nn.init.zeros_(layer.shifted.bias)
    x = torch.zeros(1, 1, 3 * size, 4 * size)
    row, column = size, 2 * size  # the first pixel of patch (1, 2)
    x[0, 0, row, column] = 1.0
    seen = [(r, c) for r, c in grid_of(3, 4) if layer(x)[0, r, c, 0] > 1e-6]
    by = size // 2
    moved = [(row + dy * by, column + dx * by) for dy, dx in DIAGONALS]
    assert seen == sorted({(r // size, c // size) for r, c in moved})


def grid_of(rows: int, columns: int) -> list[tuple[int, int]]:
    return [(r, c) for r in range(rows) for c in range(columns)]


# --- weights ------------------------------------------------------------------------------------


def codes(layer: nn.Module) -> dict[str, Tensor]:
    size = layer.stem.patch
    copy, channel, i, j = (t.flatten() for t in grid(len(DIAGONALS), CHANNELS, size, size))
    role = code(copy, channel, i, j)
    out = torch.arange(layer.width)
    return {
        "shifted_norm.weight": role,
        "shifted_norm.bias": role,
        "shifted.weight": out[:, None] * 1000**4 + role,
        "shifted.bias": out,
    }


@pytest.mark.parametrize(("patch", "width"), [(2, WIDTH), (4, 6), (1, 3)])
def test_smaller_patches_keep_copy_channel_and_place_of_their_pixels(patch, width):
    large, small = ShiftedPatchStem(4), ShiftedPatchStem(patch)
    assert_roles(codes, large.build(CHANNELS, WIDTH), small.build(CHANNELS, width))


def test_a_prefix_of_the_pixels_would_be_another_copy():
    """Which is what the plain prefix of the stored weight gives."""
    role = codes(ShiftedPatchStem(4).build(CHANNELS, WIDTH))["shifted.weight"]
    wanted = codes(ShiftedPatchStem(2).build(CHANNELS, WIDTH))["shifted.weight"]
    assert not torch.equal(role[:, : wanted.shape[1]], wanted)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 6), (5, 5)])
def test_images_that_do_not_fit_are_refused(height, width):
    assert f"ShiftedPatchStem got {height}×{width}" in ShiftedPatchStem(4).misfit(height, width)
    with pytest.raises(SpaceError, match=f"A stem must get .* multiples of 4: .*{height}×{width}"):
        ShiftedPatchStem(4).build(CHANNELS, WIDTH)(torch.zeros(1, CHANNELS, height, width))
    assert ShiftedPatchStem(4).misfit(8, 12) is None
    assert ShiftedPatchStem(4).stride == 4
