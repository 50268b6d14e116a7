"""The spatial gate against its formula, neighbour by neighbour, and against DAT's own code."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import cut_module, maps, randomise
from layers.recorded import recorded
from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers import Mlp
from nas.layers.ffns.spatial_gate import SpatialGate


def literal(x: Tensor, large: nn.Module, units: int, kernel: int) -> Tensor:
    """From the first units of the large layer and the neighbours that the kernel covers."""
    B, H, W, C = x.shape
    half = {}
    for name in ("up", "gating_up"):
        linear = getattr(large, name)
        half[name] = F.gelu(x @ linear.weight[:units, :C].T + linear.bias[:units])
    gate = half["gating_up"] - half["gating_up"].mean(-1, keepdim=True)
    gate = gate / (gate.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    gate = gate * large.gating_norm.weight[:units] + large.gating_norm.bias[:units]
    weight, centre, reach = large.gating_conv.weight[:units, 0], large.ffn.kernel // 2, kernel // 2
    blurred = large.gating_conv.bias[:units].repeat(B, H, W, 1)
    for r in range(H):
        for c in range(W):
            for i in range(max(0, r - reach), min(H, r + reach + 1)):
                for j in range(max(0, c - reach), min(W, c + reach + 1)):
                    blurred[:, r, c] += weight[:, centre + i - r, centre + j - c] * gate[:, i, j]
    return (half["up"] * blurred) @ large.down.weight[:C, :units].T + large.down.bias[:C]


@pytest.mark.parametrize(
    ("width", "ratio", "kernel"), [(8, 4, 5), (8, 4, 3), (8, 2, 5), (6, 4, 5), (6, 1, 3)]
)
def test_cut_halves_gate_each_other_with_their_neighbours(width, ratio, kernel):
    large, x = randomise(SpatialGate(4, 5).build(8)), maps(width, 4)
    small = cut_module(large, SpatialGate(ratio, kernel).build(width))
    torch.testing.assert_close(small(x), literal(x, large, width * ratio // 2, kernel))


def test_dat_itself_answers_the_same():
    weights, x, y = recorded("dat_sgfn")
    layer = SpatialGate(2).build(4)
    state = {f"down.{n}": weights[f"fc2.{n}"] for n in ("weight", "bias")}
    for n in ("weight", "bias"):
        state[f"up.{n}"], state[f"gating_up.{n}"] = weights[f"fc1.{n}"].chunk(2)
        state[f"gating_norm.{n}"], state[f"gating_conv.{n}"] = (
            weights[f"sg.norm.{n}"],
            weights[f"sg.conv.{n}"],
        )
    layer.load_state_dict(state)
    torch.testing.assert_close(layer(x.reshape(1, 2, 3, 4)).flatten(1, 2), y)


def test_the_gated_half_is_shared_with_a_plain_mlp():
    gated, mlp = (dict(f.build(8).named_parameters()) for f in (SpatialGate(4), Mlp(2)))
    assert {n: p.shape for n, p in gated.items() if not n.startswith("gating_")} == {
        n: p.shape for n, p in mlp.items()
    }


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (16, 16)])
def test_any_map(height, width):
    layer = randomise(SpatialGate(2, 5).build(8))
    assert layer(torch.randn(2, height, width, 8).double()).isfinite().all()
