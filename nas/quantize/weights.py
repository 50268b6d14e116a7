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


def fake_quantize(weight: Tensor, bits: int) -> Tensor:
    """`weight` (out, …) rounded to `bits`, in its own dtype; gradients pass straight through.

    Raises:
        SpaceError: bits that are not among `BITS`.
    """
    _require_bits(bits)
    if bits == 32:
        return weight
    if bits == 16:
        return _Half.apply(weight)
    groups = _grouped(weight, bits)
    scale = _scales(groups, bits)
    rounded = _Round.apply(groups / scale) * scale
    return _flat(rounded, weight.shape)


@dataclass(frozen=True)
class Integers:
    """Weights as the whole numbers that are stored.

    Attributes:
        values: int8, of the shape of the weights.
        scales: float32 (out, groups): a weight is its value times the scale of its group.
        bits: 2, 4 or 8.
    """

    values: Tensor
    scales: Tensor
    bits: int

    @classmethod
    def of(cls, weight: Tensor, bits: int) -> Integers:
        """What `fake_quantize` rounds to.

        Raises:
            SpaceError: bits at which weights are not whole numbers.
        """
        if bits not in (2, 4, 8):
            raise SpaceError(f"Whole numbers must have 2, 4 or 8 bits: got {bits}.")
        groups = _grouped(weight.detach(), bits)
        scale = _scales(groups, bits)
        values = _flat((groups / scale).round(), weight.shape).to(torch.int8)
        return cls(values, scale[..., 0].to(torch.float32), bits)

    @staticmethod
    def scales_shape(shape: tuple[int, ...], bits: int) -> tuple[int, int]:
        """Of the scales of weights of that shape."""
        return shape[0], 1 if bits > 4 else math.ceil(math.prod(shape[1:]) / GROUP)

    def weight(self) -> Tensor:
        """The weights, float32: equal to `fake_quantize` to the bit."""
        groups = _grouped(self.values.to(torch.float32), self.bits)
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


def payload_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Bytes of a tensor packed at `bits`, scales included."""
    out, inputs = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if bits >= 16:
        return bits // 8 * out * inputs
    scales = out if bits > 4 else out * math.ceil(inputs / GROUP)
    return math.ceil(out * inputs * bits / 8) + SCALE_BYTES * scales


def _require_bits(bits: int) -> None:
    if bits not in BITS:
        raise SpaceError(f"Weight bits must be one of {', '.join(map(str, BITS))}: got {bits}.")


def _grouped(weight: Tensor, bits: int) -> Tensor:
    """(out, …) to (out, groups, inputs of a group), padded with zeros, which no scale notices."""
    rows = weight.reshape(weight.shape[0], -1)
    if bits > 4:
        return rows[:, None]
    padded = F.pad(rows, (0, -rows.shape[1] % GROUP))
    return padded.reshape(rows.shape[0], -1, GROUP)


def _flat(groups: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """What `_grouped` grouped, in one piece: products of strided rows can differ in the last bit."""
    return groups.flatten(1)[:, : math.prod(shape[1:])].reshape(shape).contiguous()


def _scales(groups: Tensor, bits: int) -> Tensor:
    """(out, groups, 1); 1 where all is 0."""
    scale = groups.detach().abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
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
