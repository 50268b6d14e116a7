"""Stems and merging: cut ones normalise over the channels that they have, and join the same neighbours."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, cut_tensors, grid, maps, randomise
from torch import Tensor
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers import OverlapStem, PatchMerging, PatchStem
from nas.layers.downsampling.merging import Merging


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def test_cut_stem_normalises_over_the_channels_it_has():
    large = randomise(OverlapStem(2).build(3, 32))
    small = cut_module(large, OverlapStem(2).build(3, 16).double())
    x = torch.randn(2, 3, 8, 8).double()
    y = F.conv2d(x, large.conv.weight[:16], large.conv.bias[:16], stride=2, padding=1)
    y = layer_norm(y.permute(0, 2, 3, 1), large.norm.weight[:16], large.norm.bias[:16])
    torch.testing.assert_close(small(x), y)


@pytest.mark.parametrize(("width", "out"), [(16, 64), (32, 24), (16, 24)])
def test_cut_merging_joins_the_same_neighbours(width, out):
    large = randomise(PatchMerging().build(32, 64))
    small = cut_module(large, PatchMerging().build(width, out).double())
    x = maps(width)
    weight = large.reduction.weight.reshape(64, 4, 32)[:out, :, :width]
    norm_weight, norm_bias = (p.reshape(4, 32)[:, :width].flatten() for p in large.merged_norm.parameters())
    neighbours = [x[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]
    y = layer_norm(torch.cat(neighbours, -1), norm_weight, norm_bias)
    torch.testing.assert_close(small(x), y @ weight.flatten(1).T + large.reduction.bias[:out])


def merging_codes(layer: Merging) -> dict[str, Tensor]:
    out, column = grid(layer.out_width, 4 * layer.width)
    neighbour = torch.arange(4 * layer.width)
    both = code(neighbour // layer.width, neighbour % layer.width)
    return {
        "merged_norm.weight": both,
        "merged_norm.bias": both,
        "reduction.weight": code(out, column // layer.width, column % layer.width),
        "reduction.bias": code(torch.arange(layer.out_width)),
    }


def test_merging_keeps_roles():
    large, small = PatchMerging().build(32, 64), PatchMerging().build(24, 40)
    kept = cut_tensors(merging_codes(large), large, small)
    for name, wanted in merging_codes(small).items():
        assert torch.equal(kept[name], wanted), name


def test_smaller_patches_keep_the_offsets_of_their_pixels():
    large, small = PatchStem(4).build(3, 16), PatchStem(2).build(3, 16)
    role = code(*grid(16, 3, 4, 4))
    kept = cut_tensors({"patches.weight": role, "patches.bias": torch.arange(16)}, large, small)
    assert torch.equal(kept["patches.weight"], code(*grid(16, 3, 2, 2)))


def test_smaller_kernels_keep_their_offsets_from_the_centre():
    large, small = OverlapStem(4, norm=None).build(3, 16), OverlapStem(1, norm=None).build(3, 16)

    def roles(side: int) -> Tensor:
        out, channel, dy, dx = grid(16, 3, side, side)
        return code(out, channel, dy - side // 2, dx - side // 2)

    kept = cut_tensors({"conv.weight": roles(7), "conv.bias": torch.arange(16)}, large, small)
    assert torch.equal(kept["conv.weight"], roles(3))


def test_an_overlapping_stem_activates_after_its_norm():
    linear = randomise(OverlapStem(1).build(3, 16))
    active = OverlapStem(1, activation="gelu").build(3, 16).double()
    active.load_state_dict(linear.state_dict())  # the same names: a stem shares its weights with either
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(active(x), torch.nn.functional.gelu(linear(x)))


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (PatchMerging().build(16, 16), torch.zeros(1, 5, 4, 16), "multiples of 2.*5×4"),
        (OverlapStem(4).build(1, 8), torch.zeros(1, 1, 10, 8), "multiples of 4.*10×8"),
        (PatchStem(4).build(1, 8), torch.zeros(1, 1, 10, 8), "multiples of 4.*10×8"),
    ],
)
def test_maps_that_do_not_fit_are_refused(layer, x, message):
    with pytest.raises(SpaceError, match=message):
        layer(x)
