"""Modules that know their bits: linear layers that round their inputs, and notes on how weights are kept."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import ExportError
from nas.layers.choice import Bits
from nas.layers.quantizers import (
    GROUP,
    CalibratedRange,
    Company,
    DynamicBlocks,
    DynamicRange,
    FixedRange,
    QuantizedLinear,
    RangeOfCall,
)
from nas.quantize.paths import FULL, BitsOf, bits_by_path, of_parameter
from nas.quantize.settings import DYNAMIC, Quantization
from nas.quantize.weights import Integers, scales_of

# --- builders -------------------------------------------------------------------------------------


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
            _note(inner, {name: Rounding(of.weight, quantization.nested) for name, of in low.items()})
            if type(inner) is nn.Linear and "weight" in low and low["weight"].activation < 32:
                layers[id(inner)] = low["weight"]
    by_name = dict(found.values())
    if layers:
        module = _replaced(module, layers, quantization)
    return module, by_name


def _replaced(module: nn.Module, layers: dict[int, Bits], quantization: Quantization) -> nn.Module:
    """`module` with those linear layers (by `id`) quantized."""
    company = Company()

    def quantized(layer: nn.Module) -> nn.Module:
        assert isinstance(layer, nn.Linear)
        new = QuantizedLinear(layer, _quantizer(layers[id(layer)].weight, quantization, company))
        _note(new, _noted(layer))
        return new

    module = with_replaced(module, layers, quantized)
    for inner in module.modules():
        if isinstance(inner, nn.TransformerEncoderLayer):
            inner.activation_relu_or_gelu = 0  # its fast path would read weights and call no layer
    if quantization.activations == DYNAMIC:
        company.hook(module)
    return module


def _quantizer(bits: int, quantization: Quantization, company: Company) -> nn.Module:
    if bits < 8 or quantization.nested:
        return DynamicBlocks()
    if quantization.activations == DYNAMIC:
        return DynamicRange(quantization.images, company)
    return CalibratedRange()


# --- learned scales -------------------------------------------------------------------------------

_STEP = re.compile(r"_step_(2|4|8)$")


def step_name(weight: str, bits: int) -> str:
    """Of what is learned of the scales of `weight` at those bits. A bank holds it, no module does."""
    return f"{weight}_step_{bits}"


def weight_of_step(name: str) -> str | None:
    """The weight whose scales a name is about; None for that of a parameter."""
    return _STEP.sub("", name) if _STEP.search(name) else None


# --- how weights are rounded ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rounding:
    """How a weight is rounded.

    Attributes:
        bits: fewer than 32.
        nested: see `Quantization`.
        scales: (out, groups) of what it was rounded to; None: it was not, as in a module that was only built.
    """

    bits: int
    nested: bool = False
    scales: Tensor | None = None

    def integers(self, name: str, weight: Tensor) -> Integers:
        """The whole numbers of `weight`, which `name` is called.

        Raises:
            ExportError: it is not what it was rounded to.
        """
        if self.scales is None:
            return Integers.of(weight, self.bits, scales_of(weight, self.bits, nested=self.nested))
        integers = Integers.of(weight, self.bits, self.scales)
        if not torch.equal(integers.weight(), weight.detach().to(torch.float32)):
            raise ExportError(
                f"`{name}` must be what it was rounded to at {self.bits} bits, but it was changed since. "
                f"Train with the supernet of the architecture alone, and extract that again."
            )
        return integers


_NOTE = "_roundings"


def _note(module: nn.Module, of: Mapping[str, Rounding]) -> None:
    setattr(module, _NOTE, dict(of))


def _noted(module: nn.Module) -> dict[str, Rounding]:
    found: dict[str, Rounding] = getattr(module, _NOTE, {})
    return found


def roundings(module: nn.Module) -> dict[str, Rounding]:
    """How the weights that `at_bits` found to have fewer than 32 bits are rounded, by name."""
    return {
        f"{prefix}.{name}" if prefix else name: of
        for prefix, inner in module.named_modules()
        for name, of in _noted(inner).items()
    }


def weight_bits(module: nn.Module) -> dict[str, int]:
    """Bits of these weights, by name."""
    return {name: of.bits for name, of in roundings(module).items()}


def bits_in(module: nn.Module) -> dict[str, Bits]:
    """Bits of all parameters of `module`, and of the inputs that a layer really rounds, by name."""
    first = {id(p): name for name, p in module.named_parameters()}
    whole = {first[id(m.weight)] for m in module.modules() if isinstance(m, QuantizedLinear)}
    few = weight_bits(module)
    return {name: Bits(few.get(name, 32), 8 if name in whole else 32) for name in first.values()}


def note_scales(module: nn.Module, scales: Mapping[str, Tensor]) -> None:
    """Notes, by name, on what scale the weights of `module` were rounded."""
    first = {id(p): name for name, p in module.named_parameters()}
    for inner in module.modules():
        of = {
            name: replace(how, scales=scales.get(first[id(inner._parameters[name])]))
            for name, how in _noted(inner).items()
        }
        if of:
            _note(inner, of)


INTEGER, BLOCKS, INTEGER_BLOCKS = "integer", "block", "integer_block"


def kernel_of(layer: nn.Module) -> str | None:
    """Which kernel of few bits an export runs for a module: `INTEGER`, of whole numbers; of weights in blocks
    of `GROUP`, `BLOCKS` and, for inputs in such blocks, `INTEGER_BLOCKS`; None: that of floats.
    """
    if isinstance(layer, QuantizedLinear):
        return INTEGER_BLOCKS if isinstance(layer.quantizer, DynamicBlocks) else INTEGER
    of = _noted(layer).get("weight")
    in_blocks = type(layer) is nn.Linear and of and of.bits == 4 and layer.in_features % GROUP == 0
    return BLOCKS if in_blocks else None


# --- modules without ------------------------------------------------------------------------------


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


def with_fixed_ranges(module: nn.Module) -> nn.Module:
    """`module`, in place, whose ranges are numbers, or those of the call: for what follows no branches."""
    for parent in list(module.modules()):
        for key, hook in list(parent._forward_pre_hooks.items()):
            if isinstance(hook, Company):
                del parent._forward_pre_hooks[key]
                parent._forward_pre_hooks_with_kwargs.pop(key, None)
        for name, child in parent._modules.items():
            if isinstance(child, CalibratedRange):
                parent._modules[name] = FixedRange(child)
            elif isinstance(child, DynamicRange):
                parent._modules[name] = RangeOfCall()
    return module


def _plain(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, QuantizedLinear)
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


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
