"""Rounding of weights, against the formula in float64 and against plain arithmetic of bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from nas.errors import SpaceError
from nas.layers.quantizers import CalibratedRange
from nas.quantize import GROUP, Integers, bits_by_path, fake_quantize, payload_bytes


def reference(weight: np.ndarray, bits: int) -> np.ndarray:
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    step = rows.shape[1] if bits == 8 else GROUP
    result = np.empty_like(rows)
    for i, row in enumerate(rows):
        for start in range(0, len(row), step):
            part = row[start : start + step]
            scale = np.abs(part).max() / (2 ** (bits - 1) - 1) or 1.0
            result[i, start : start + step] = np.round(part / scale) * scale
    return result.reshape(weight.shape)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(6, 64), (5, 40), (4, 3, 3, 3), (3, 7)])
def test_equals_the_formula(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted = reference(weight.numpy(), bits)
    np.testing.assert_allclose(fake_quantize(weight, bits), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_twice_changes_nothing_more(bits):
    once = fake_quantize(torch.randn(8, 64), bits)
    torch.testing.assert_close(fake_quantize(once, bits), once, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_rounded_lies_in_one_piece(bits):
    assert fake_quantize(torch.randn(6, 16), bits).is_contiguous()


def test_few_values_are_left():
    rounded = fake_quantize(torch.randn(1, GROUP), 4)
    assert len(rounded.unique()) <= 15


def test_gradient_passes_straight_through():
    weight = torch.randn(4, 40, requires_grad=True)
    fake_quantize(weight, 4).mul(torch.arange(40)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.arange(40.0).expand(4, 40))


def test_zeros_stay_zeros():
    assert not fake_quantize(torch.zeros(2, 32), 4).any()


def test_32_bits_are_the_weights_themselves():
    weight = torch.randn(2, 2)
    assert fake_quantize(weight, 32) is weight


def test_16_bits_are_half_precision():
    weight = torch.randn(3, 5, requires_grad=True)
    rounded = fake_quantize(weight, 16)
    assert torch.equal(rounded, weight.half().float())
    rounded.mul(torch.arange(5)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.arange(5.0).expand(3, 5))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(6, 64), (5, 41), (4, 3, 3, 3), (3, 1)])
class TestIntegers:
    def test_are_what_is_simulated(self, bits, shape):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        integers = Integers.of(weight, bits)
        assert integers.values.shape == shape
        assert int(integers.values.abs().max()) == 2 ** (bits - 1) - 1
        assert torch.equal(integers.weight(), fake_quantize(weight, bits))

    def test_come_back_from_their_bytes(self, bits, shape):
        integers = Integers.of(torch.randn(shape, generator=torch.Generator().manual_seed(2)), bits)
        packed = integers.packed()
        assert packed.numel() + 4 * integers.scales.numel() == payload_bytes(shape, bits)
        back = Integers.unpacked(packed, integers.scales, shape, bits)
        assert torch.equal(back.values, integers.values)
        with pytest.raises(ValueError, match=rf"of {bits} bits must have {len(packed)} bytes: got"):
            Integers.unpacked(packed[1:], integers.scales, shape, bits)


def test_bytes_hold_the_first_number_in_their_lowest_bits():
    integers = Integers(torch.tensor([[1, -1, 7, -7]], dtype=torch.int8), torch.ones(1, 1), 4)
    assert integers.packed().tolist() == [0x1 | 0xF << 4, 0x7 | 0x9 << 4]


def test_half_precision_is_no_whole_number():
    with pytest.raises(SpaceError, match="must have 2, 4 or 8 bits: got 16"):
        Integers.of(torch.zeros(2, 2), 16)


def test_unknown_bits():
    with pytest.raises(SpaceError, match="one of 2, 4, 8, 16, 32: got 5"):
        fake_quantize(torch.zeros(2, 2), 5)


@pytest.mark.parametrize(
    ("shape", "bits", "wanted"),
    [
        ((64, 128), 32, 64 * 128 * 4),
        ((64, 128), 8, 64 * 128 + 64 * 4),
        ((64, 128), 4, 64 * 64 + 64 * 4 * 4),
        ((3, 33), 4, 50 + 3 * 2 * 4),  # half bytes round up, and so do groups
        ((64, 128), 2, 64 * 32 + 64 * 4 * 4),
        ((64, 128), 16, 64 * 128 * 2),
        ((10,), 32, 40),
        ((), 32, 4),
    ],
)
def test_payload(shape, bits, wanted):
    assert payload_bytes(shape, bits) == wanted


@dataclass(frozen=True)
class Bits:
    weight: int


@dataclass(frozen=True)
class Part:
    bits: Bits


@dataclass(frozen=True)
class Net:
    mixer: Part
    parts: tuple[Part, ...]


def test_bits_follow_the_path():
    net = Net(Part(Bits(8)), (Part(Bits(4)), Part(Bits(32))))
    wanted = {
        "mixer.q.weight": 8,
        "parts.0.inner.deep.weight": 4,
        "parts.1.weight": 32,
        "mixer.q.bias": 32,
        "elsewhere.weight": 32,
        "parts.7.weight": 32,
    }
    assert {name: bits_by_path(net, name).weight for name in wanted} == wanted


def test_a_calibrated_range_is_the_mean_over_calls():
    calls = [torch.tensor([-1.0, 2.0]), torch.tensor([-4.0, 3.0]), torch.tensor([1.0, 10.0])]
    kept = CalibratedRange().eval()
    kept.calls = 0
    for x in calls:
        kept(x)
    assert kept.calls == 3
    assert (float(kept.low), float(kept.high)) == pytest.approx((-5 / 3, 5.0))  # 0 lies in each
    kept.calls = None
    far = torch.tensor([-9.0, 90.0])
    assert kept(far).abs().max() <= 5.1  # which is cut to the range
