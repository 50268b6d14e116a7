"""What is exported of a module that knows its bits: kernels of few bits, and weights kept in few."""

from __future__ import annotations

import copy

from torch import nn

from nas.export.integer import integer_layer
from nas.export.stored import store
from nas.quantize import (
    BLOCKS,
    kernel_of,
    roundings,
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
