"""Weights of few bits: whole numbers with scales, simulated in float while a supernet is trained.

Symmetric; one scale per output channel at 8 bits, one per `GROUP` consecutive inputs of a channel below. The
order is cut, then scale, then round: a subnet is quantized as it would be if it had been trained alone. 16
bits are half precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers.choice import BITS
from nas.layers.quantizers import GROUP

SCALE_BYTES = 4
MASTER = 8
"""Bits of the whole numbers of which nested ones are the leading bits."""


def fake_quantize(weight: Tensor, bits: int, *, nested: bool = False, step: Tensor | None = None) -> Tensor:
    """`weight` (out, …) rounded to `bits`, in its own dtype; gradients pass straight through.

    Args:
        nested: whether 2, 4 and 8 bits are the leading bits of one whole number of 8, whose scale is shared
            by a group (Matryoshka quantization, Nair et al., 2025, §3).
        step: (out,) logarithm of a learned factor of the scales (learned step size quantization, Esser et
            al., 2020, §2, which learns the scale itself): gradients reach it as there, by how far numbers
            lie from their step, times 1 / √(numbers · largest).

    Raises:
        SpaceError: bits that are not among `BITS`.
    """
    _require_bits(bits)
    if bits == 32:
        return weight
    if bits == 16:
        return _Half.apply(weight)
    groups = _grouped(weight, bits <= 4 or nested)
    if step is not None:
        scale = _scales(groups, bits) * step.exp()[:, None, None]
        return _flat(_Learned.apply(groups, scale, _largest(bits)), weight.shape)
    if nested:
        return _flat(_Nested.apply(groups, _scales(groups, MASTER), bits), weight.shape)
    scale = _scales(groups, bits)
    return _flat(_Round.apply(groups / scale) * scale, weight.shape)


def scales_of(weight: Tensor, bits: int, *, nested: bool = False, step: Tensor | None = None) -> Tensor:
    """(out, groups): what whole numbers of `fake_quantize` are multiplied by; 2, 4 or 8 bits."""
    groups = _grouped(weight.detach(), bits <= 4 or nested)
    if nested:
        return (_scales(groups, MASTER) * 2 ** (MASTER - bits))[..., 0]
    scale = _scales(groups, bits)
    return (scale if step is None else scale * step.detach().exp()[:, None, None])[..., 0]


@dataclass(frozen=True)
class Integers:
    """Weights as the whole numbers that are stored.

    Attributes:
        values: int8, of the shape of the weights.
        scales: float32 (out, groups): a weight is its value times the scale of its group. One group is all
            inputs of a channel, several are of `GROUP` inputs each.
        bits: 2, 4 or 8.
    """

    values: Tensor
    scales: Tensor
    bits: int

    @classmethod
    def of(cls, weight: Tensor, bits: int, scales: Tensor | None = None) -> Integers:
        """The nearest to `weight`: what it was rounded to, given the scales of that (`scales_of`).

        Raises:
            SpaceError: bits at which weights are not whole numbers.
        """
        if bits not in (2, 4, 8):
            raise SpaceError(f"Whole numbers must have 2, 4 or 8 bits: got {bits}.")
        scales = (scales_of(weight, bits) if scales is None else scales).to(torch.float32)
        groups = _grouped(weight.detach(), scales.shape[1] > 1 or bits <= 4)
        values = (groups / scales[..., None]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return cls(_flat(values, weight.shape).to(torch.int8), scales, bits)

    @staticmethod
    def scales_shape(shape: tuple[int, ...], bits: int, nested: bool = False) -> tuple[int, int]:
        """Of the scales of weights of that shape."""
        return shape[0], math.ceil(math.prod(shape[1:]) / GROUP) if bits <= 4 or nested else 1

    def weight(self) -> Tensor:
        """The weights, float32: equal to `fake_quantize` to the bit."""
        groups = _grouped(self.values.to(torch.float32), self.scales.shape[1] > 1 or self.bits <= 4)
        return _flat(groups * self.scales[..., None], self.values.shape)

    def packed(self) -> Tensor:
        """The values, uint8 (bytes,), the first of a byte in its lowest bits."""
        per_byte = 8 // self.bits
        values = self.values.flatten().to(torch.int16) & (2**self.bits - 1)
        values = F.pad(values, (0, -len(values) % per_byte)).reshape(-1, per_byte)
        shifts = self.bits * torch.arange(per_byte, dtype=torch.int16)
        return (values << shifts).sum(-1).to(torch.uint8)

    @classmethod
    def unpacked(cls, packed: Tensor, scales: Tensor, shape: tuple[int, ...], bits: int) -> Integers:
        """What `packed` packed.

        Raises:
            ValueError: not as many bytes as that shape takes.
        """
        count, per_byte = math.prod(shape), 8 // bits
        if packed.shape != (math.ceil(count / per_byte),):
            raise ValueError(
                f"{count} numbers of {bits} bits must have {math.ceil(count / per_byte)} bytes: got "
                f"{tuple(packed.shape)}."
            )
        shifts = bits * torch.arange(per_byte, dtype=torch.int16)
        values = (packed.to(torch.int16)[:, None] >> shifts) & (2**bits - 1)
        values = values.flatten()[:count]
        values = torch.where(values >= 2 ** (bits - 1), values - 2**bits, values)
        return cls(values.to(torch.int8).reshape(shape), scales, bits)


def payload_bytes(shape: tuple[int, ...], bits: int, *, nested: bool = False) -> int:
    """Bytes of a tensor packed at `bits`, scales included."""
    out, inputs = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if bits >= 16:
        return bits // 8 * out * inputs
    scales = math.prod(Integers.scales_shape((out, inputs), bits, nested))
    return math.ceil(out * inputs * bits / 8) + SCALE_BYTES * scales


def _require_bits(bits: int) -> None:
    if bits not in BITS:
        raise SpaceError(f"Weight bits must be one of {', '.join(map(str, BITS))}: got {bits}.")


def _largest(bits: int) -> int:
    """Whole number; its negative is the smallest."""
    return 2 ** (bits - 1) - 1


def _grouped(weight: Tensor, in_groups: bool) -> Tensor:
    """(out, …) to (out, groups, inputs of a group), padded with zeros, which no scale notices."""
    rows = weight.reshape(weight.shape[0], -1)
    if not in_groups:
        return rows[:, None]
    padded = F.pad(rows, (0, -rows.shape[1] % GROUP))
    return padded.reshape(rows.shape[0], -1, GROUP)


def _flat(groups: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """What `_grouped` grouped, in one piece: products of strided rows can differ in the last bit."""
    return groups.flatten(1)[:, : math.prod(shape[1:])].reshape(shape).contiguous()


def _scales(groups: Tensor, bits: int) -> Tensor:
    """(out, groups, 1); 1 where all is 0."""
    scale = groups.detach().abs().amax(dim=-1, keepdim=True) / _largest(bits)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


class _Round(torch.autograd.Function):
    """Rounding with the gradient of the identity (straight-through, Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Half(torch.autograd.Function):
    """Half precision, likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.half().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Nested(torch.autograd.Function):
    """The leading bits of numbers of `MASTER` bits on that scale, likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bits: int) -> Tensor:
        dropped = 2 ** (MASTER - bits)
        leading = ((x / scale).round() / dropped).round().clamp(-(2 ** (bits - 1)), _largest(bits))
        return leading * (scale * dropped)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class _Learned(torch.autograd.Function):
    """Rounding whose scale learns (Esser et al., 2020, eqs. 1 to 3, §2.2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, largest: int) -> Tensor:
        v = x / scale
        rounded = v.round().clamp(-largest, largest)
        inside = v.abs() <= largest
        ctx.save_for_backward(torch.where(inside, rounded - v, rounded), inside)
        ctx.share = 1 / math.sqrt(x[0].numel() * largest)
        return rounded * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        of_scale, inside = ctx.saved_tensors
        return grad * inside, (grad * of_scale).sum(-1, keepdim=True) * ctx.share, None
