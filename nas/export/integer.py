"""Linear layers as runtimes compute them with few bits: the same whole numbers in PyTorch and in ONNX.

In PyTorch they give what the kernel will give, computed in float64 where the kernel adds whole numbers. The
ONNX exporter writes the operators of ONNX Runtime for them: `DynamicQuantizeLinear` and `MatMulInteger`, one
kernel there, and `com.microsoft.MatMulNBits`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import ExportError
from nas.quantize import GROUP, Integers

Bits = tuple[int, int]
"""Of weights and of activations."""
BLOCKS: tuple[Bits, ...] = ((4, 8), (4, 32), (8, 8), (8, 32))
FLOAT, WHOLE = 1, 4  # how MatMulNBits computes: its `accuracy_level`


def with_integer_layers(
    module: nn.Module, bits: Mapping[str, Bits], *, whole_tensor: bool = True
) -> nn.Module:
    """A copy of `module` in evaluation mode whose linear layers of those names compute with few bits.

    Args:
        bits: of weights (4 or 8) and activations (8 or 32) by the name of a linear layer.
        whole_tensor: whether 8-bit activations before 8-bit weights have one range for all inputs of a call;
            else, as before 4-bit weights, each input has one for every `GROUP` of its numbers.

    Raises:
        ExportError: a name that is no linear layer, or bits for which there is no kernel.
    """
    module = copy.deepcopy(module).eval()
    layers = dict(module.named_modules())
    for name, form in bits.items():
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            raise ExportError(
                f"Integer kernels must be for linear layers: `{name}` is {type(layer).__name__}."
            )
        if form not in BLOCKS:
            raise ExportError(
                f"`{name}` must have weights of 4 or 8 bits and activations of 8 or 32: got {form[0]} and "
                f"{form[1]}."
            )
        parent, _, last = name.rpartition(".")
        whole = whole_tensor and form == (8, 8)
        integer = DynamicInt8Linear(layer) if whole else BlockLinear(layer, *form)
        setattr(module.get_submodule(parent), last, integer)
    return module


class DynamicInt8Linear(nn.Module):
    """Weights of 8 bits by output channel; activations of 8 bits, with one range for all inputs of a call,
    found when it comes (dynamic quantization).

    Args:
        layer: whose weights it takes.
    """

    weight: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        integers = Integers.of(layer.weight, 8)
        self.register_buffer("weight", integers.values.t().contiguous())  # (in, out), as MatMul has it
        self.register_buffer("scale", integers.scales[:, 0].contiguous())
        self.register_buffer("zero", torch.zeros((), dtype=torch.int8))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _DynamicInt8.apply(x, self.weight, self.scale, self.zero)
        return y if self.bias is None else y + self.bias


class BlockLinear(nn.Module):
    """Weights in blocks of `GROUP` inputs with a scale each; at 8 bits all blocks of a channel have the same.
    So are activations of 8 bits, whose scales are found when they come, for each input apart.

    Args:
        layer: whose weights it takes.
        bits: of weights, 4 or 8.
        activation: bits of activations, 8 or 32 (float).
    """

    packed: Tensor
    scales: Tensor
    weight: Tensor

    def __init__(self, layer: nn.Linear, bits: int, activation: int) -> None:
        super().__init__()
        self.bits, self.activation = bits, activation
        integers = Integers.of(layer.weight, bits)
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
        level = FLOAT if self.activation == 32 else WHOLE
        y: Tensor = _Blocks.apply(x, self.packed, self.scales, self.weight, self.bits, level)
        return y if self.bias is None else y + self.bias


class _DynamicInt8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
        step = (high - low) / 255
        step = torch.where(step > 0, step, torch.ones_like(step))
        offset = torch.round(-low / step).clamp(0, 255)
        whole = torch.clamp(torch.round(x / step) + offset, 0, 255) - offset
        total = whole.double() @ weight.double()  # whole numbers: exact
        return total.to(x.dtype) * (step * scale)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, scale: Any, zero: Any) -> Any:
        whole, step, offset = g.op("DynamicQuantizeLinear", x, outputs=3)
        total = g.op("Cast", g.op("MatMulInteger", whole, weight, offset, zero), to_i=1)
        return g.op("Mul", total, g.op("Mul", step, scale))


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, weight: Tensor, bits: int, level: int
    ) -> Tensor:
        if level == FLOAT:
            return x @ weight.t()
        blocks = F.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
        step = blocks.abs().amax(-1, keepdim=True) / 127
        step = torch.where(step > 0, step, torch.ones_like(step))
        rounded = ((blocks / step).round() * step).flatten(-2)[..., : x.shape[-1]]
        return rounded @ weight.t()

    @staticmethod
    def symbolic(g: Any, x: Any, packed: Any, scales: Any, weight: Any, bits: int, level: int) -> Any:
        out, inputs = weight.type().sizes()
        sizes = {"K_i": inputs, "N_i": out, "bits_i": bits, "block_size_i": GROUP, "accuracy_level_i": level}
        y = g.op("com.microsoft::MatMulNBits", x, packed, scales, **sizes)
        y.setType(x.type().with_sizes([*x.type().varyingSizes()[:-1], out]))
        return y
