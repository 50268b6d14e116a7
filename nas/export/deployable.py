"""What is exported of a module that knows its bits: kernels of few bits, and weights kept in few."""

from __future__ import annotations

import copy

from torch import nn

from nas.export.integer import integer_layer
from nas.export.stored import store
from nas.quantize import (
    BLOCKS,
    GROUP,
    INTEGER_BLOCKS,
    Rounding,
    kernel_of,
    payload_bytes,
    roundings,
    weight_bits,
    with_replaced,
)


def deployable(module: nn.Module, *, portable: bool = False) -> nn.Module:
    """A copy of `module`, in evaluation mode, that the ONNX exporter writes at its bits; the module itself
    where it has none below 32.

    - 8-bit inputs: linear layers become integer kernels.
    - 4-bit weights of linear layers whose inputs fall into whole blocks: block-quantized products.
    - All other weights: kept at their bits, and turned into floats when the file is loaded.

    Args:
        portable: in operators of ONNX alone, which every runtime knows: no block-quantized products.

    Raises:
        ExportError: a layer whose range is not calibrated, or for which there is no kernel.
    """
    if not roundings(module):
        return module
    module = copy.deepcopy(module).eval()
    kernels: dict[int, nn.Module] = {}
    for name, how in roundings(module).items():
        prefix, _, last = name.rpartition(".")
        layer = module.get_submodule(prefix)
        kernel = kernel_of(layer)
        if kernel and not (portable and kernel == BLOCKS):
            assert isinstance(layer, nn.Linear)
            kernels[id(layer)] = integer_layer(prefix, layer, how, portable=portable)
        else:
            store(layer, last, how, name)
    return with_replaced(module, kernels, lambda layer: kernels[id(layer)])


def padding_bytes(module: nn.Module) -> int:
    """Bytes that block-quantized products need beyond the weights, where blocks do not divide inputs."""
    return sum(
        layer.out_features * (-layer.in_features % GROUP) * weight_bits(layer)["weight"] // 8
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and kernel_of(layer) == INTEGER_BLOCKS
    )


def repeated_bytes(module: nn.Module, bits: int | None = None) -> int:
    """Bytes of tied weights beyond once, at their bits or all at `bits`: in a file each layer may have
    kernels, or weights, of its own."""
    known, once = {} if bits else roundings(module), dict(module.named_parameters()).keys()
    plain = Rounding(bits or 32)
    return sum(
        payload_bytes(tuple(p.shape), how.bits, nested=how.nested)
        for name, p in module.named_parameters(remove_duplicate=False)
        if name not in once
        for how in (known.get(name, plain),)
    )
