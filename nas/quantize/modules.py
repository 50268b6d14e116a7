"""Modules that know their bits: linear layers that round their inputs, and notes on how weights are kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from nas.layers.choice import Bits
from nas.layers.quantizers import (
    GROUP,
    CalibratedRange,
    Company,
    DynamicBlocks,
    DynamicRange,
    QuantizedLinear,
)
from nas.quantize.paths import FULL, BitsOf, bits_by_path, of_parameter
from nas.quantize.settings import DYNAMIC, Quantization


@dataclass(frozen=True)
class AtBits:
    """A builder whose modules are those of `build`, at the bits of their architecture.

    Linear layers that have inputs of 8 bits become `QuantizedLinear`, with the same names of parameters.
    Weights are not rounded: whoever fills the module does that.

    Example:
        >>> model = AtBits(hierarchical.build)(architecture)
    """

    build: Callable[[Any], nn.Module]
    bits: BitsOf = bits_by_path
    quantization: Quantization = Quantization()

    def __call__(self, architecture: Any) -> nn.Module:
        return self.quantized(self.build(architecture), architecture)[0]

    def quantized(self, module: nn.Module, architecture: Any) -> tuple[nn.Module, dict[str, Bits]]:
        """`module` of an architecture, changed in place (or, if it is a linear layer itself, another), and
        the bits of its parameters by name."""
        return at_bits(module, lambda name: of_parameter(self.bits, architecture, name), self.quantization)


def at_bits(
    module: nn.Module, bits: Callable[[str], Bits], quantization: Quantization
) -> tuple[nn.Module, dict[str, Bits]]:
    """`module`, whose linear layers take their inputs at those bits, and the bits of all parameters by name.

    Only parameters of two axes or more have few bits, and a tied one has those of its first name.
    """
    found: dict[int, tuple[str, Bits]] = {}
    layers: dict[int, Bits] = {}
    for prefix, inner in module.named_modules():
        low = {}
        for name, parameter in inner._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in found:
                path = f"{prefix}.{name}" if prefix else name
                found[id(parameter)] = path, bits(path) if parameter.ndim > 1 else FULL
            if (of := found[id(parameter)][1]).weight < 32:
                low[name] = of
        if low:
            _note(inner, {name: of.weight for name, of in low.items()})
            if type(inner) is nn.Linear and "weight" in low and low["weight"].activation < 32:
                layers[id(inner)] = low["weight"]
    return _replaced(module, layers, quantization), dict(found.values())


def in_floats(module: nn.Module) -> nn.Module:
    """A copy whose linear layers take their inputs as they are; the module itself where all do."""
    if not any(isinstance(inner, QuantizedLinear) for inner in module.modules()):
        return module
    module = copy.deepcopy(module)
    ids = {id(inner) for inner in module.modules() if isinstance(inner, QuantizedLinear)}
    return with_replaced(module, ids, _plain)


def without_bits(module: nn.Module) -> nn.Module:
    """A copy that knows of no bits: its weights are the same numbers, as floats."""
    module = copy.deepcopy(in_floats(module))
    for inner in module.modules():
        if hasattr(inner, _NOTE):
            delattr(inner, _NOTE)
    return module


def _plain(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, QuantizedLinear)
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def stored_bits(module: nn.Module) -> dict[str, int]:
    """Bits of the weights of `module` by name, of those that `at_bits` found to have fewer than 32."""
    return {
        f"{prefix}.{name}" if prefix else name: bits
        for prefix, inner in module.named_modules()
        for name, bits in getattr(inner, _NOTE, {}).items()
    }


INTEGER, BLOCKS, INTEGER_BLOCKS = "integer", "block", "integer_block"


def kernel_of(layer: nn.Module) -> str | None:
    """Which kernel of few bits an export runs for a module: `INTEGER`, of whole numbers; of weights in blocks
    of `GROUP`, `BLOCKS` and, for inputs in such blocks, `INTEGER_BLOCKS`; None: that of floats.
    """
    if isinstance(layer, QuantizedLinear):
        return INTEGER_BLOCKS if isinstance(layer.quantizer, DynamicBlocks) else INTEGER
    bits = getattr(layer, _NOTE, {}).get("weight")
    in_blocks = type(layer) is nn.Linear and bits == 4 and layer.in_features % GROUP == 0
    return BLOCKS if in_blocks else None


def with_replaced(
    module: nn.Module, ids: Collection[int], make: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """`module`, in which `make(inner)` stands, wherever that is used, for each inner module of those ids."""
    made: dict[int, nn.Module] = {}

    def new(inner: nn.Module) -> nn.Module:
        if id(inner) not in made:
            made[id(inner)] = make(inner)
        return made[id(inner)]

    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in ids:
                parent._modules[name] = new(child)
    return new(module) if id(module) in ids else module


_NOTE = "_stored_bits"


def _note(module: nn.Module, bits: dict[str, int]) -> None:
    setattr(module, _NOTE, bits)


def _replaced(module: nn.Module, layers: dict[int, Bits], quantization: Quantization) -> nn.Module:
    """`module` with those linear layers (by `id`) quantized."""
    if not layers:
        return module
    company = Company()

    def quantized(layer: nn.Module) -> nn.Module:
        assert isinstance(layer, nn.Linear)
        new = QuantizedLinear(layer, _quantizer(layers[id(layer)].weight, quantization, company))
        _note(new, getattr(layer, _NOTE))
        return new

    module = with_replaced(module, layers, quantized)
    if quantization.activations == DYNAMIC:
        company.hook(module)
    return module


def _quantizer(bits: int, quantization: Quantization, company: Company) -> nn.Module:
    if bits < 8:
        return DynamicBlocks()
    if quantization.activations == DYNAMIC:
        return DynamicRange(quantization.images, company)
    return CalibratedRange()
