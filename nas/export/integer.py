"""Linear layers as runtimes compute them with few bits: the same whole numbers in PyTorch and in ONNX.

The ONNX exporter writes operators of ONNX Runtime for them: `com.microsoft.MatMulIntegerToFloat` behind
`QuantizeLinear`; `DynamicQuantizeLinear` with `MatMulInteger`, one kernel there; `com.microsoft.MatMulNBits`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx.symbolic_helper import _optional_input_placeholder_tensor

from nas.errors import ExportError
from nas.export.stored import store
from nas.layers.quantizers import (
    HALF,
    CalibratedRange,
    DynamicBlocks,
    DynamicRange,
    QuantizedLinear,
    range_of,
    scale_and_zero,
)
from nas.quantize import GROUP, Integers, Rounding

FLOAT, WHOLE = 1, 4  # how MatMulNBits computes: its `accuracy_level`


def integer_layer(name: str, layer: nn.Linear, how: Rounding, *, portable: bool = False) -> nn.Module:
    """A linear layer whose weights are kept so, as a kernel computes it: one of those below.

    Args:
        portable: in operators of ONNX alone.

    Raises:
        ExportError: a layer whose range is not calibrated, or for which there is no kernel.
    """
    quantizer = layer.quantizer if isinstance(layer, QuantizedLinear) else None
    bits, weight = how.bits, f"{name}.weight"
    if bits == 8 and isinstance(quantizer, CalibratedRange):
        if not quantizer.calibrated:
            raise ExportError(
                f"The range of `{name}` must be calibrated before it is exported. Extract the subnet with "
                f"`buffers=supernet.calibrate(architecture, batches)`; if you did, the layer is never called "
                f"(its weight is read by other code), so leave its inputs at 32 bits."
            )
        return StaticInt8Linear(layer, how.integers(weight, layer.weight), quantizer, portable=portable)
    if bits == 8 and isinstance(quantizer, DynamicRange):
        return DynamicInt8Linear(layer, how.integers(weight, layer.weight))
    if portable and isinstance(quantizer, DynamicBlocks):
        return PlainBlockLinear(layer, how)
    if bits in (4, 8) and isinstance(quantizer, (DynamicBlocks, type(None))):
        return BlockLinear(layer, how.integers(weight, layer.weight), whole=quantizer is not None)
    raise ExportError(
        f"There must be a kernel for `{name}`, but ONNX Runtime has none for weights of {bits} bits and "
        f"inputs of 8. Use 4 or 8 bits there, or inputs of 32."
    )


class StaticInt8Linear(nn.Module):
    """Weights of 8 bits by output channel, inputs of 8 bits in a range that was calibrated.

    Args:
        layer: whose bias it takes.
        integers: its weights.
        quantizer: whose range it takes.
        portable: whether ONNX gets a product of floats between `QuantizeLinear` and `DequantizeLinear`, in
            which runtimes see one of whole numbers.
    """

    weight: Tensor
    scales: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(
        self, layer: nn.Linear, integers: Integers, quantizer: CalibratedRange, *, portable: bool = False
    ) -> None:
        super().__init__()
        self.portable = portable
        self.register_buffer("weight", integers.values.t().contiguous())  # (in, out), as MatMul has it
        self.register_buffer("scales", integers.scales[:, 0].contiguous())
        scale, zero = scale_and_zero(quantizer.low, quantizer.high)
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero", zero.detach().to(torch.uint8))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        of = _Portable if self.portable else _StaticInt8
        y: Tensor = of.apply(x, self.scale, self.zero, self.weight, self.scales, self.bias)
        return y


class DynamicInt8Linear(nn.Module):
    """Weights of 8 bits by output channel; inputs of 8 bits, with one range for all of a call, found when it
    comes.

    Args:
        layer: whose bias it takes.
        integers: its weights.
    """

    weight: Tensor
    scales: Tensor
    zero: Tensor

    def __init__(self, layer: nn.Linear, integers: Integers) -> None:
        super().__init__()
        self.register_buffer("weight", integers.values.t().contiguous())
        self.register_buffer("scales", integers.scales[:, 0].contiguous())
        self.register_buffer("zero", torch.zeros((), dtype=torch.int8))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _DynamicInt8.apply(x, self.weight, self.scales, self.zero)
        return y if self.bias is None else y + self.bias


class BlockLinear(nn.Module):
    """Weights in blocks of `GROUP` inputs with a scale each; at 8 bits all blocks of a channel have the same.

    Args:
        layer: whose bias it takes.
        integers: its weights, of 4 or 8 bits.
        whole: whether blocks of inputs have 8 bits too, each with a scale that is found when it comes; else
            inputs are float.
    """

    packed: Tensor
    scales: Tensor
    weight: Tensor

    def __init__(self, layer: nn.Linear, integers: Integers, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.bits = bits = integers.bits
        out, inputs = layer.weight.shape
        blocks = math.ceil(inputs / GROUP)
        middle = 2 ** (bits - 1)
        unsigned = (integers.values.to(torch.int16) + middle).to(torch.uint8)
        unsigned = F.pad(unsigned, (0, blocks * GROUP - inputs), value=middle).reshape(out, blocks, GROUP)
        if bits == 4:
            unsigned = unsigned[..., 0::2] | unsigned[..., 1::2] << 4
        self.register_buffer("packed", unsigned.contiguous())
        self.register_buffer("scales", integers.scales.expand(out, blocks).flatten().contiguous())
        self.register_buffer("weight", integers.weight(), persistent=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        level = WHOLE if self.whole else FLOAT
        y: Tensor = _Blocks.apply(x, self.packed, self.scales, self.weight, self.bits, level)
        return y if self.bias is None else y + self.bias


class PlainBlockLinear(nn.Module):
    """The same numbers as `BlockLinear` with 8-bit inputs, in arithmetic on floats: there is no operator of
    ONNX for it. Nothing is gained but that the file runs anywhere.

    Args:
        layer: whose weights and bias it takes.
        how: its weights are kept.
    """

    def __init__(self, layer: nn.Linear, how: Rounding) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        store(self, "weight", how, "weight")

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_in_blocks(x), self.weight, self.bias)


def _in_blocks(x: Tensor) -> Tensor:
    """Inputs rounded to 8 bits in blocks of `GROUP`."""
    padded = F.pad(x, (0, -x.shape[-1] % GROUP))
    blocks = padded.reshape(*x.shape[:-1], -1, GROUP)  # `unflatten` would freeze the batch size of an export
    step = blocks.abs().amax(-1, keepdim=True) / HALF
    step = torch.where(step > 0, step, torch.ones_like(step))
    return ((blocks / step).round() * step).reshape(padded.shape)[..., : x.shape[-1]]


def _multiplied(x: Tensor, step: Tensor, offset: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """What kernels give for inputs on that scale: whole numbers are added exactly."""
    whole = torch.clamp(torch.round(x / step) + offset, 0, 255) - offset
    total = whole.double() @ weight.double()
    return total.to(x.dtype) * (step * scales)


class _StaticInt8(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, offset: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None
    ) -> Tensor:
        y = _multiplied(x, step, offset.to(x.dtype), weight, scales)
        return y if bias is None else y + bias

    @staticmethod
    def symbolic(g: Any, x: Any, step: Any, offset: Any, weight: Any, scales: Any, bias: Any) -> Any:
        whole = g.op("QuantizeLinear", x, step, offset)
        optional = [] if bias is None else [_optional_input_placeholder_tensor(g), bias]  # no zero of weights
        y = g.op("com.microsoft::MatMulIntegerToFloat", whole, weight, step, scales, offset, *optional)
        _set_type(y, x, weight.type().sizes()[1])
        return y


class _Portable(_StaticInt8):
    @staticmethod
    def symbolic(g: Any, x: Any, step: Any, offset: Any, weight: Any, scales: Any, bias: Any) -> Any:
        x_8 = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, offset), step, offset)
        y = g.op("MatMul", x_8, g.op("DequantizeLinear", weight, scales, axis_i=1))
        y = y if bias is None else g.op("Add", y, bias)
        _set_type(y, x, weight.type().sizes()[1])
        return y


class _DynamicInt8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, zero: Tensor) -> Tensor:
        return _multiplied(x, *scale_and_zero(*range_of(x)), weight, scales)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, scales: Any, zero: Any) -> Any:
        whole, step, offset = g.op("DynamicQuantizeLinear", x, outputs=3)
        total = g.op("Cast", g.op("MatMulInteger", whole, weight, offset, zero), to_i=1)
        return g.op("Mul", total, g.op("Mul", step, scales))


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, weight: Tensor, bits: int, level: int
    ) -> Tensor:
        return (_in_blocks(x) if level == WHOLE else x) @ weight.t()

    @staticmethod
    def symbolic(g: Any, x: Any, packed: Any, scales: Any, weight: Any, bits: int, level: int) -> Any:
        out, inputs = weight.type().sizes()
        sizes = {"K_i": inputs, "N_i": out, "bits_i": bits, "block_size_i": GROUP, "accuracy_level_i": level}
        y = g.op("com.microsoft::MatMulNBits", x, packed, scales, **sizes)
        _set_type(y, x, out)
        return y


def _set_type(y: Any, x: Any, width: int) -> None:
    """That of x but for the last axis; how many come, nobody knows."""
    y.setType(x.type().with_sizes([None, *x.type().varyingSizes()[1:-1], width]))
