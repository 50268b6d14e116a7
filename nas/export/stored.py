"""Weights that a file holds in few bits and a runtime turns into floats once, when it loads the file.

That is how weights are kept for which no kernel of few bits pays, or exists: those of convolutions, say.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nas.quantize import GROUP, Integers, Rounding

_FLOAT = 1  # of ONNX


def store(module: nn.Module, name: str, how: Rounding, path: str) -> None:
    """Makes the parameter `name` of `module`, which `path` is called, one that exports write in few bits."""
    weight: Tensor = getattr(module, name).detach()
    kept = _Half(weight) if how.bits == 16 else _Packed(how.integers(path, weight))
    parametrize.register_parametrization(module, name, kept, unsafe=True)


class _Half(nn.Module):
    values: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", weight.half())

    def forward(self, _: Tensor) -> Tensor:
        return self.values.float()


class _Packed(nn.Module):
    packed: Tensor
    scales: Tensor
    weight: Tensor

    def __init__(self, integers: Integers) -> None:
        super().__init__()
        self.bits = integers.bits
        packed = integers.values if integers.bits == 8 else integers.packed()
        self.register_buffer("packed", packed)
        self.register_buffer("scales", integers.scales)
        self.register_buffer("weight", integers.weight(), persistent=False)

    def forward(self, _: Tensor) -> Tensor:
        y: Tensor = _Unpacked.apply(self.packed, self.scales, self.weight, self.bits)
        return y


class _Unpacked(torch.autograd.Function):
    """In PyTorch the weight that is there already; in ONNX the arithmetic that makes it."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, scales: Tensor, weight: Tensor, bits: int) -> Tensor:
        return weight.clone()

    @staticmethod
    def symbolic(g: Any, packed: Any, scales: Any, weight: Any, bits: int) -> Any:
        shape = weight.type().sizes()
        inputs = torch.Size(shape[1:]).numel()
        values = g.op("Cast", packed, to_i=_FLOAT)
        if bits < 8:
            values = _signed(g, _digits(g, values, bits, shape[0] * inputs), bits)
        rows = _reshaped(g, values, [shape[0], inputs])
        if scales.type().sizes()[1] > 1:  # the scale of each input's group
            group = _constant(g, torch.arange(inputs, dtype=torch.int32) // GROUP)
            scales = g.op("Gather", scales, group, axis_i=1)
        y = _reshaped(g, g.op("Mul", rows, scales), shape)
        y.setType(weight.type())
        return y


def _digits(g: Any, values: Any, bits: int, count: int) -> Any:
    """The numbers that bytes hold, the first of a byte in its lowest bits, as floats (count,)."""
    per_byte, base = 8 // bits, 2**bits
    shifted = [values]
    for _ in range(per_byte - 1):
        shifted.append(g.op("Floor", g.op("Div", shifted[-1], _constant(g, torch.tensor(float(base))))))
    digits = [
        g.op("Sub", low, g.op("Mul", high, _constant(g, torch.tensor(float(base)))))
        for low, high in pairwise(shifted)
    ]
    columns = [_reshaped(g, digit, [-1, 1]) for digit in (*digits, shifted[-1])]
    flat = _reshaped(g, g.op("Concat", *columns, axis_i=1), [-1])
    ends = [_constant(g, torch.tensor([n])) for n in (0, count, 0)]
    return g.op("Slice", flat, *ends)


def _signed(g: Any, digits: Any, bits: int) -> Any:
    """From 0 … 2^bits - 1 to their meaning in two's complement."""
    half = _constant(g, torch.tensor(2.0 ** (bits - 1) - 0.5))
    negative = g.op("Cast", g.op("Greater", digits, half), to_i=_FLOAT)
    return g.op("Sub", digits, g.op("Mul", negative, _constant(g, torch.tensor(2.0**bits))))


def _constant(g: Any, value: Tensor) -> Any:
    return g.op("Constant", value_t=value)


def _reshaped(g: Any, x: Any, shape: list[int]) -> Any:
    return g.op("Reshape", x, _constant(g, torch.tensor(shape)))
