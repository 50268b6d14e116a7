"""Linear layers as runtimes compute them with few bits: the same whole numbers in PyTorch and in ONNX.

In PyTorch they give what the kernel will give, computed in float64 where the kernel adds whole numbers. The
ONNX exporter writes the operators of ONNX Runtime for them: `DynamicQuantizeLinear` and `MatMulInteger`, which
become one kernel there, and `com.microsoft.MatMulNBits`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import ExportError
from nas.quantize import GROUP, Integers

Bits = tuple[int, int]
"""Of weights and of activations."""
FORMS: tuple[Bits, ...] = ((8, 8), (4, 32))


def with_integer_layers(module: nn.Module, bits: Mapping[str, Bits]) -> nn.Module:
    """A copy of `module` in evaluation mode whose linear layers of those names compute with few bits.

    Args:
        bits: of weights and activations, one of `FORMS`, by the name of a linear layer.

    Raises:
        ExportError: a name that is no linear layer, or bits for which there is no kernel.
    """
    module = copy.deepcopy(module).eval()
    for name, form in bits.items():
        layer = dict(module.named_modules()).get(name)
        if not isinstance(layer, nn.Linear):
            raise ExportError(
                f"Integer kernels must be for linear layers: `{name}` is {type(layer).__name__}."
            )
        if form not in FORMS:
            known = ", ".join(f"{w} and {a}" for w, a in FORMS)
            raise ExportError(
                f"`{name}` must have weights and activations of {known} bits: got {form[0]} and {form[1]}."
            )
        parent, _, last = name.rpartition(".")
        integer = DynamicInt8Linear(layer) if form == (8, 8) else Int4Linear(layer)
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


class Int4Linear(nn.Module):
    """Weights of 4 bits in blocks of `GROUP` inputs with a scale each; activations are float.

    Args:
        layer: whose weights it takes.
    """

    packed: Tensor
    scales: Tensor
    weight: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        integers = Integers.of(layer.weight, 4)
        out, inputs = layer.weight.shape
        unsigned = F.pad((integers.values.to(torch.int16) + 8).to(torch.uint8), (0, -inputs % GROUP), value=8)
        pairs = unsigned.reshape(out, -1, GROUP // 2, 2)
        self.register_buffer("packed", (pairs[..., 0] | pairs[..., 1] << 4).contiguous())
        self.register_buffer("scales", integers.scales.flatten().contiguous())
        self.register_buffer("weight", integers.weight(), persistent=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Blocks.apply(x, self.packed, self.scales, self.weight)
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
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.t()

    @staticmethod
    def symbolic(g: Any, x: Any, packed: Any, scales: Any, weight: Any) -> Any:
        out, inputs = weight.type().sizes()
        sizes = {"K_i": inputs, "N_i": out, "bits_i": 4, "block_size_i": GROUP, "accuracy_level_i": 1}
        return g.op("com.microsoft::MatMulNBits", x, packed, scales, **sizes)
