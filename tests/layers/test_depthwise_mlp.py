"""An MLP whose hidden units look at their neighbours, one by one."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import SIDES, assert_roles, gelu, places, rectangle
from torch import Tensor, nn

from nas.layers import Mlp
from nas.layers.ffns.depthwise import DepthwiseMlp

WIDTH = 8
ACTIVATION = {"gelu": gelu, "relu": lambda x: x.clamp(min=0), "silu": lambda x: x / (1 + (-x).exp())}


def literal(x: Tensor, large: nn.Module, units: int, ffn: DepthwiseMlp) -> Tensor:
    """From the first units of the large layer and the middle of its kernels."""
    C, reach, weight = x.shape[-1], ffn.kernel // 2, large.depthwise.weight[:units, 0]
    centre = weight.shape[-1] // 2
    up = x @ large.up.weight[:units, :C].T + large.up.bias[:units]
    up = up.clamp(min=0) if ffn.relu_first else up
    near = torch.zeros_like(up) + large.depthwise.bias[:units]
    for r, c in places(x):
        for i, j in places(x):
            if abs(i - r) <= reach and abs(j - c) <= reach:
                near[:, r, c] += weight[:, centre + i - r, centre + j - c] * up[:, i, j]
    hidden = ACTIVATION[ffn.activation](near)
    return hidden @ large.down.weight[:C, :units].T + large.down.bias[:C]


@pytest.mark.parametrize("sides", [*SIDES, (1, 3)])
@pytest.mark.parametrize("ratio", [1, 2, 4])
@pytest.mark.parametrize(
    ("width", "kernel", "options"),
    [
        (8, 5, {}),
        (8, 3, {"relu_first": True}),
        (6, 5, {"activation": "silu"}),
        (6, 3, {"relu_first": True, "activation": "relu"}),
    ],
)
def test_hidden_units_look_at_their_neighbours(width, kernel, options, ratio, sides):
    large, x = randomise(DepthwiseMlp(4, 5, **options).build(WIDTH)), rectangle(width, *sides)
    ffn = DepthwiseMlp(ratio, kernel, **options)
    small = cut_module(large, ffn.build(width))
    torch.testing.assert_close(small(x), literal(x, large, width * ratio, ffn))


def roles(layer: nn.Module) -> dict[str, Tensor]:
    unit, _, dy, dx = grid(*layer.depthwise.weight.shape)
    kernel = layer.depthwise.weight.shape[-1]
    return {"depthwise.weight": code(unit, dy - kernel // 2, dx - kernel // 2)}


@pytest.mark.parametrize(("ratio", "kernel"), [(4, 3), (2, 5), (1, 3), (1, 1)])
def test_kernels_keep_their_unit_and_offsets(ratio, kernel):
    assert_roles(roles, DepthwiseMlp(4, 5).build(16), DepthwiseMlp(ratio, kernel).build(8))


def test_all_but_the_convolution_is_shared_with_a_plain_mlp():
    ours, mlp = (dict(f.build(8).named_parameters()) for f in (DepthwiseMlp(2), Mlp(2)))
    ours = {n: p.shape for n, p in ours.items() if not n.startswith("depthwise.")}
    assert ours == {n: p.shape for n, p in mlp.items()}
