"""Bytes that weights take in a file, as predicted: what is written is held against them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from nas.quantize import (
    GROUP,
    INTEGER,
    INTEGER_BLOCKS,
    Rounding,
    kernel_of,
    payload_bytes,
    roundings,
    weight_bits,
)


def predicted_bytes(module: nn.Module, bits: int | None = None) -> int:
    """Of all weights at their bits, scales included; or of all at `bits`."""
    return _bytes(module, dict(module.named_parameters()), bits)


def predicted_of_whole_numbers(module: nn.Module) -> int:
    """Of all weights as floats, but for those of layers that compute with whole numbers, at their bits."""
    names, layers = dict(module.named_parameters()).keys(), dict(module.named_modules())
    rounded = names & roundings(module).keys()
    whole = {name for name in rounded if kernel_of(layers[name.rpartition(".")[0]]) == INTEGER}
    return _bytes(module, whole) + _bytes(module, names - whole, 32)


def repeated_bytes(module: nn.Module, bits: int | None = None) -> int:
    """Bytes of tied weights beyond once, at their bits or all at `bits`: in a file each layer may have
    kernels, or weights, of its own."""
    once = dict(module.named_parameters()).keys()
    return _bytes(module, dict(module.named_parameters(remove_duplicate=False)).keys() - once, bits)


def padding_bytes(module: nn.Module) -> int:
    """Bytes that block-quantized products need beyond the weights, where blocks do not divide inputs."""
    return sum(
        layer.out_features * (-layer.in_features % GROUP) * weight_bits(layer)["weight"] // 8
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and kernel_of(layer) == INTEGER_BLOCKS
    )


def _bytes(module: nn.Module, names: Iterable[str], bits: int | None = None) -> int:
    """Of the parameters that are called so, at their bits or all at `bits`."""
    known, plain = {} if bits else roundings(module), Rounding(bits or 32)
    parameters, names = dict(module.named_parameters(remove_duplicate=False)), set(names)
    return sum(
        payload_bytes(tuple(p.shape), how.bits, nested=how.nested)
        for name, p in parameters.items()
        if name in names
        for how in (known.get(name, plain),)
    )
