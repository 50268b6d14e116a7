"""An MLP with a convolution in groups, unit by unit; units that keep their group when others go."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import SIDES, assert_roles, gelu, padded, rectangle
from torch import Tensor, nn

from nas.layers.ffns.grouped import GroupedConvMlp

WIDTH = 8


def literal(x: Tensor, large: nn.Module, groups: int, units: int) -> Tensor:
    """From the first groups, and in each of them the first units, of the large layer. A group is a list of
    units, and a unit of the convolution sees the 3 × 3 neighbours of those of its own group."""
    C, n = x.shape[-1], large.per_group
    y = torch.zeros_like(x)
    for group in range(groups):
        first = group * n
        up = gelu(x @ large.grouped_up.weight[first : first + units, :C].T)
        wide, mixed = padded(up, 1, 0.0), torch.zeros_like(up)
        for unit in range(units):
            for dy in range(3):
                for dx in range(3):
                    weight = large.grouped.weight[first + unit, :units, dy, dx]
                    near = wide[:, dy : dy + x.shape[1], dx : dx + x.shape[2]]
                    mixed[..., unit] += (near * weight).sum(-1)
        y = y + gelu(mixed) @ large.grouped_down.weight[:C, first : first + units].T
    return y


@pytest.mark.parametrize("sides", [*SIDES, (1, 3)])
@pytest.mark.parametrize(
    ("width", "ratio", "groups"), [(8, 2, 4), (8, 1, 4), (6, 2, 4), (6, 1, 4), (8, 1, 2), (8, 0.5, 1)]
)
def test_units_see_their_group(width, ratio, groups, sides):
    large, x = randomise(GroupedConvMlp(2, groups=4).build(WIDTH)), rectangle(width, *sides)
    small = cut_module(large, GroupedConvMlp(ratio, groups=groups).build(width))
    torch.testing.assert_close(small(x), literal(x, large, groups, int(width * ratio) // groups))


def test_another_activation():
    layer = randomise(GroupedConvMlp(1, groups=2, activation="relu").build(4))
    layer.grouped.weight.data.abs_()
    layer.grouped_up.weight.data.abs_()
    x = rectangle(4, 3, 5).abs()  # then there is nothing to rectify
    up = padded(x @ layer.grouped_up.weight.T, 1, 0.0)
    y = torch.zeros_like(x)
    for unit in range(4):
        group = slice(unit // 2 * 2, unit // 2 * 2 + 2)
        for dy in range(3):
            for dx in range(3):
                near = up[:, dy : dy + 3, dx : dx + 5, group]
                y[..., unit] += (near * layer.grouped.weight[unit, :, dy, dx]).sum(-1)
    torch.testing.assert_close(layer(x), y @ layer.grouped_down.weight.T)


@pytest.mark.parametrize(
    ("width", "ratio", "groups", "hidden"), [(8, 2, 8, 16), (8, 1.9, 8, 8), (12, 2, 8, 24), (4, 1, 8, 8)]
)
def test_hidden_units_are_a_multiple_of_groups(width, ratio, groups, hidden):
    layer = GroupedConvMlp(ratio, groups=groups).build(width)
    assert layer.grouped_up.out_features == layer.grouped.in_channels == hidden


def roles(layer: nn.Module) -> dict[str, Tensor]:
    """Of each weight: the groups and the places in them of the units that it joins."""
    n, hidden = layer.per_group, layer.groups * layer.per_group
    unit, channel = grid(hidden, layer.width)
    to, source, dy, dx = grid(hidden, n, 3, 3)
    out, by = grid(layer.width, hidden)
    return {
        "grouped_up.weight": code(unit // n, unit % n, channel),
        "grouped.weight": code(to // n, to % n, source, dy, dx),
        "grouped_down.weight": code(out, by // n, by % n),
    }


@pytest.mark.parametrize(("width", "ratio", "groups"), [(16, 1, 4), (8, 2, 4), (8, 1, 2)])
def test_units_keep_their_groups(width, ratio, groups):
    large = GroupedConvMlp(2, groups=4).build(16)
    assert_roles(roles, large, GroupedConvMlp(ratio, groups=groups).build(width))
