"""AFT against its formula, pair by pair, and a public implementation; biases that keep their offsets."""

from __future__ import annotations

import pytest
import torch
from export.nets import apart
from layers.cutting import code, cut_module, cut_tensors, grid, maps, randomise
from layers.recorded import recorded
from torch import Tensor, nn

from nas.export.onnx import export_onnx
from nas.layers.mixers.attention_free import AftConv, AftFull, AftLocal, AftSimple


def literal(x: Tensor, parts: nn.Module, bias) -> Tensor:
    """Equation 2 of the paper, one pair of positions and one channel at a time: `bias(t, t', u)`."""
    B, H, W, _ = x.shape
    q, k, v = (p(x).flatten(1, 2) for p in (parts.q, parts.k, parts.v))
    per_key = v.shape[-1] // k.shape[-1]
    y = torch.zeros_like(v)
    cells = [(r, c) for r in range(H) for c in range(W)]
    for u in range(v.shape[-1]):
        for t, here in enumerate(cells):
            w = torch.stack([bias(here, there, u) for there in cells])
            weights = (k[:, :, u // per_key] + w).exp()
            y[:, t, u] = q[:, t, u].sigmoid() * (weights * v[:, :, u]).sum(1) / weights.sum(1)
    return parts.o(y).reshape(B, H, W, -1)


def product(layer: nn.Module):
    return lambda here, there, u: layer.aft_target[here] @ layer.aft_source[there]


def test_simple_is_the_formula_without_biases():
    layer, x = randomise(AftSimple(ratio=0.5).build(8)), maps(8, 3)
    torch.testing.assert_close(layer(x), literal(x, layer.aft, lambda *_: torch.tensor(0.0)))


def test_full_is_the_formula():
    layer, x = randomise(AftFull(4, 3, ratio=0.5).build(8)), maps(8, 3)
    torch.testing.assert_close(layer(x), literal(x, layer.aft, product(layer)))


@pytest.mark.parametrize("window", [1, 2])
def test_local_has_biases_near_by_only(window):
    layer, x = randomise(AftLocal(window, 4, 3, ratio=0.5).build(8)), maps(8, 3)
    full = product(layer)

    def bias(here, there, u):
        near = max(abs(a - b) for a, b in zip(here, there, strict=True)) < window
        return full(here, there, u) if near else torch.tensor(0.0).double()

    torch.testing.assert_close(layer(x), literal(x, layer.aft, bias))


def test_a_window_over_all_is_full():
    full, x = randomise(AftFull(4, 3).build(8)), maps(8, 3)
    local = cut_module(full, AftLocal(3, 4, 3).build(8))
    torch.testing.assert_close(local(x), full(x))


@pytest.mark.parametrize("kernel", [3, 5])
def test_cut_convolution_is_the_formula_with_its_offsets(kernel):
    large, x = randomise(AftConv(2, 5, value_dim=3).build(8)), maps(8, 4)
    small = cut_module(large, AftConv(2, kernel, value_dim=3).build(8))

    def bias(here, there, u):
        dy, dx = (b - a for a, b in zip(here, there, strict=True))
        if max(abs(dy), abs(dx)) > kernel // 2:
            return torch.tensor(0.0).double()
        return large.aft_conv_bias[u // 3, 2 + dy, 2 + dx]

    torch.testing.assert_close(small(x), literal(x, large.aft_conv, bias))


def test_roles_are_kept():
    def codes(layer):
        C, h, e, s = layer.width, layer.heads, layer.value_dim, layer.kernel
        unit, channel = grid(h * e, C)
        rows = code(unit // e, unit % e, channel)
        head, dy, dx = grid(h, s, s)
        vector = code(torch.arange(h * e) // e, torch.arange(h * e) % e)
        return {
            **{f"aft_conv.{p}.weight": rows for p in "qv"},
            **{f"aft_conv.{p}.bias": vector for p in "qv"},
            "aft_conv.k.weight": code(*grid(h, C)),
            "aft_conv.k.bias": code(torch.arange(h)),
            "aft_conv.o.weight": code(channel.T, unit.T // e, unit.T % e),
            "aft_conv.o.bias": code(torch.arange(C)),
            "aft_conv_bias": code(head, dy - s // 2, dx - s // 2),
        }

    large, small = AftConv(4, 7, value_dim=8).build(16), AftConv(2, 3, value_dim=4).build(8)
    kept = cut_tensors(codes(large), large, small)
    for name, wanted in codes(small).items():
        assert torch.equal(kept[name], wanted), name


@pytest.mark.parametrize("name", ["full", "simple"])
def test_a_public_implementation_answers_the_same(name):
    weights, x, y = recorded(f"aft_{name}")
    layer = (AftFull(6, 2, ratio=2) if name == "full" else AftSimple(ratio=2)).build(4)
    names = {"to_q": "q", "to_k": "k", "to_v": "v", "project": "o"}
    state = {f"aft.{ours}.{w}": weights[f"{n}.{w}"] for n, ours in names.items() for w in ("weight", "bias")}
    layer.load_state_dict(state, strict=False)
    if name == "full":  # its biases are one matrix for 6 positions, here on a map of 2 × 3
        layer.aft_target = nn.Parameter(weights["wbias"].reshape(2, 3, 6))
        layer.aft_source = nn.Parameter(torch.eye(6).reshape(2, 3, 6))
    torch.testing.assert_close(layer(x.reshape(1, 2, 3, 4)).flatten(1, 2), y)


ALL = [AftSimple(), AftFull(4, 4), AftLocal(2, 4, 4), AftConv(2, 3)]
each = pytest.mark.parametrize("mixer", ALL, ids=lambda m: type(m).__name__)


@each
def test_keys_as_large_as_they_like(mixer):
    """What is added to all keys alike cancels, and no key makes numerator or denominator overflow."""
    layer, x = randomise(mixer.build(8)).float(), maps(8).float()
    keys = (layer.aft_conv if isinstance(mixer, AftConv) else layer.aft).k
    y = layer(x)
    with torch.no_grad():
        keys.bias += 1000
        torch.testing.assert_close(layer(x), y, rtol=1e-2, atol=1e-3)
        keys.weight *= 1000
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("bias", [-200, -30, 30, 200])
def test_a_mean_stays_between_the_values(bias):
    """A kernel that all but removes the one position that counts leaves differences of equal numbers, 0 / 0:
    that is inexact then, but no mean of other values."""
    layer = randomise(AftConv(1, 3, value_dim=1).build(1)).float()
    with torch.no_grad():
        layer.aft_conv_bias.fill_(bias)
        for linear, weight in ((layer.aft_conv.k, 60), (layer.aft_conv.v, 1), (layer.aft_conv.o, 1)):
            linear.weight.fill_(weight)
            linear.bias.fill_(0)
        layer.aft_conv.q.bias.fill_(100)
    x = torch.zeros(1, 4, 4, 1)
    x[0, 1, 1] = 1
    assert -1e-2 <= layer(x).min() <= layer(x).max() <= 1 + 1e-2


@each
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (12, 12)])
def test_any_map(mixer, height, width):
    layer = randomise(mixer.build(8))
    assert layer(torch.randn(2, height, width, 8).double()).isfinite().all()


@each
def test_it_exports(mixer, tmp_path):
    layer, x = randomise(mixer.build(8)).float(), maps(8, 5).float()
    export_onnx(layer, x, tmp_path / "layer.onnx")
    assert apart(tmp_path / "layer.onnx", layer, x) < 1e-5
