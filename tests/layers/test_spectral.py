"""The spectral gate against the sum over frequencies that it stands for; frequencies that keep their meaning.

Parity with the published layer is `tests/published` (spectformer_small).
"""

from __future__ import annotations

import math

import pytest
import torch
from export.nets import apart
from layers.cutting import code, cut_module, cut_tensors, grid, maps, randomise
from torch import Tensor

from nas.export.onnx import export_onnx
from nas.layers.mixers.spectral import Spectral, SpectralGate, filtered_by_products


def waves(length: int, frequencies: Tensor) -> Tensor:
    """exp(2πi f n / length) of all n and f."""
    n = torch.arange(length).double()
    return torch.exp(2j * math.pi * n[:, None] * frequencies / length)


def literal(x: Tensor, gate: Tensor) -> Tensor:
    """Amplitude of every wave in the map, by its definition; each times its number; their sum.

    The gate's rows are the frequencies −(side // 2) and up. Waves with a column frequency strictly between
    0 and the highest stand for two, their conjugates included.
    """
    _, H, W, _ = x.shape
    k, m = torch.arange(H) - H // 2, torch.arange(W // 2 + 1)
    down, across = waves(H, k), waves(W, m)
    twice = torch.where((m == 0) | (2 * m == W), 1.0, 2.0)
    amplitude = torch.einsum("bhwc,hk,wm->bkmc", x + 0j, down.conj(), across.conj()) / (H * W)
    filtered = amplitude * torch.complex(gate[..., 0], gate[..., 1]) * twice[:, None]
    return torch.einsum("bkmc,hk,wm->bhwc", filtered, down, across).real


@pytest.mark.parametrize("side", [1, 4, 5, 8])
def test_each_frequency_has_its_number(side):
    layer, x = randomise(Spectral(side).build(6)), maps(6, side)
    torch.testing.assert_close(layer(x), literal(x, layer.spectral_gate))


@pytest.mark.parametrize(("large", "small"), [(8, 4), (8, 8), (7, 3)])
def test_a_cut_gate_keeps_the_low_frequencies(large, small):
    whole, x = randomise(Spectral(large).build(6)), maps(4, small)
    layer = cut_module(whole, Spectral(small).build(4))
    low = slice(large // 2 - small // 2, large // 2 - small // 2 + small)
    torch.testing.assert_close(layer(x), literal(x, whole.spectral_gate[low, : small // 2 + 1, :4]))


def test_roles_are_kept():
    def codes(layer: SpectralGate):
        row, column, channel, part = grid(*layer.spectral_gate.shape)
        return {"spectral_gate": code(row - layer.side // 2, column, channel, part)}

    large, small = Spectral(14).build(16), Spectral(8).build(4)
    kept = cut_tensors(codes(large), large, small)
    assert torch.equal(kept["spectral_gate"], codes(small)["spectral_gate"])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 4), (7, 7), (5, 12)])
def test_frequencies_per_position_keep_their_number_on_any_map(height, width):
    """Where it is linear in the frequency, interpolation gives it to a small part of a step, 1/8 and 1/4 (off
    the edges; torch's cubic kernel, a = −0.75, is not exact for lines)."""
    layer = Spectral(8).build(1).double()
    row, column, _, _ = grid(8, 5, 1, 2)
    with torch.no_grad():
        layer.spectral_gate.copy_(3 + (row - 4) / 8 - 2 * column / 8)
    gate = layer.resized(height, width)[..., 0, 0]
    down, across = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    rows, columns = down.abs() <= 0.25, (across >= 0.125) & (across <= 0.375)
    expected = 3 + down[rows, None] - 2 * across[columns]
    torch.testing.assert_close(gate[rows][:, columns], expected.double(), atol=0.02, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (5, 6), (1, 3)])
def test_a_mean_is_scaled_by_the_number_of_frequency_0(height, width):
    layer = randomise(Spectral(8).build(3))
    x = torch.ones(1, height, width, 3).double()
    gain = layer.spectral_gate[4, 0, :, 0]
    torch.testing.assert_close(layer(x), gain.expand_as(x))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 4), (5, 6), (6, 5), (1, 1), (1, 2)])
def test_matrices_for_export_are_the_transforms(height, width):
    layer = randomise(Spectral(8).build(3))
    x = torch.randn(2, height, width, 3).double()
    torch.testing.assert_close(filtered_by_products(x, layer.resized(height, width)), layer(x))


def test_little_precision_around_it_is_not_its_own():
    layer, x = randomise(Spectral(4).build(6)).float(), maps(6).float()
    y = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), y)
    half = layer(x.half())
    assert half.dtype == torch.half
    torch.testing.assert_close(half.float(), layer(x.half().float()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", [5, 8])
def test_it_exports(side, tmp_path):
    layer, x = randomise(Spectral(8).build(3)).float(), maps(3, side).float()
    export_onnx(layer, x, tmp_path / "layer.onnx")
    assert apart(tmp_path / "layer.onnx", layer, x) < 1e-5
