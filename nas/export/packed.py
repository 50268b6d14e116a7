"""Weights of a module in a safetensors file, packed at its bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from nas.layers.choice import Bits
from nas.layers.quantizers import CalibratedRange, DynamicRange, QuantizedLinear
from nas.quantize import (
    CALIBRATED,
    DYNAMIC,
    Integers,
    Quantization,
    Rounding,
    at_bits,
    note_scales,
    roundings,
)

KEY = "nas"
SCALES = ".scales"


def save_packed(module: nn.Module, path: Path) -> None:
    """Writes the weights of `module`; those of fewer than 32 bits as `NAME`, bytes or halves, and, where they
    are whole numbers, `NAME.scales`. The header says which bits they and the inputs of layers have.

    A module without such is written as any other, under the names of its state dict.
    """
    header = header_of(module)
    if header is None:
        save_model(module, str(path))
    else:
        kept, tensors = roundings(module), dict[str, Tensor]()
        for name, value in _values(module).items():
            tensors |= _packed(name, value.detach().cpu(), kept.get(name))
        save_file(tensors, path, {KEY: header})
    path.chmod(0o644)  # the library writes for its owner alone


def load_packed(module: nn.Module, path: Path) -> nn.Module:
    """`module` (whatever its weights) at the bits that the file says, with the weights that it holds.

    Raises:
        ValueError: a header or tensors that are not such as `save_packed` writes for that module.
        SafetensorError, OSError: a damaged file, or none.
    """
    with safe_open(path, "pt") as file:
        header = (file.metadata() or {}).get(KEY)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header is None:
        for name, value in module.state_dict().items():
            if name in tensors and tensors[name].dtype != value.dtype:
                raise ValueError(f"`{name}` must be {value.dtype}: got {tensors[name].dtype}")
        try:
            load_model(module, str(path))
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())) from error  # which, its second line says
        return require_sane(module)
    module = with_header(module, header)
    kept, values = roundings(module), _values(module)
    scaled = [name for name, how in kept.items() if how.bits < 16 and name in values]
    wanted = {*values, *(f"{name}{SCALES}" for name in scaled)}
    if different := sorted(wanted ^ tensors.keys()):
        raise ValueError(f"`{different[0]}` is {'missing' if different[0] in wanted else 'unknown'}")
    with torch.no_grad():
        for name, value in values.items():
            value.copy_(_unpacked(name, tensors, value, kept.get(name)))
    note_scales(module, {name: tensors[f"{name}{SCALES}"] for name in scaled})
    return require_sane(module)


def require_sane(module: nn.Module) -> nn.Module:
    """Raises ValueError for weights that are not finite, ranges that are none, and statistics of batch norms
    that no inputs have. (Other buffers may hold what they like, such as masks.)"""
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"`{name}` holds numbers that are not finite")
    for path, inner in module.named_modules():
        if isinstance(inner, CalibratedRange):
            low, high = float(inner.low), float(inner.high)
            unknown = math.isnan(low) and math.isnan(high)  # never calibrated
            if not unknown and not -math.inf < low <= 0 <= high < math.inf:
                raise ValueError(f"`{path}` has a range from {low} to {high}, which must hold 0")
        if isinstance(inner, nn.modules.batchnorm._NormBase) and inner.running_var is not None:
            if not inner.running_mean.isfinite().all():
                raise ValueError(f"`{path}.running_mean` holds numbers that are not finite")
            if not (inner.running_var.isfinite() & (inner.running_var >= 0)).all():
                raise ValueError(f"`{path}.running_var` holds numbers that are no variances")
    return module


def require_fit(build: Callable[[], nn.Module], path: Path) -> None:
    """Raises ValueError where the module has far more weights than the file could hold, before any memory is
    taken for them."""
    with torch.device("meta"):
        wanted = sum(p.numel() for p in build().parameters())
    most = PER_BYTE * path.stat().st_size
    if wanted > most:
        raise ValueError(f"the architecture has {wanted:,} weights, the file holds {most:,} at most")


PER_BYTE = 4  # weights of 2 bits


def _values(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, tied ones once, and the buffers that are saved with them."""
    kept = module.state_dict().keys()
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in kept}
    return dict(module.named_parameters()) | buffers


def header_of(module: nn.Module) -> str | None:
    """What a file says of the bits of `module`, for `with_header`; None: 32 everywhere."""
    first = {id(p): name for name, p in module.named_parameters()}  # a tied weight stands there once
    kept = {name: how for name, how in roundings(module).items() if name in first.values()}
    if not kept:
        return None
    layers = [m for m in module.modules() if isinstance(m, QuantizedLinear)]
    whole = {first[id(layer.weight)] for layer in layers}
    dynamic = [m.quantizer for m in layers if isinstance(m.quantizer, DynamicRange)]
    return json.dumps(
        {
            "version": 1,
            "bits": {name: [how.bits, 8 if name in whole else 32] for name, how in kept.items()},
            "activations": DYNAMIC if dynamic else CALIBRATED,
            "images": dynamic[0].images if dynamic else 1,
            "nested": any(how.nested for how in kept.values()),
        }
    )


def with_header(module: nn.Module, header: str | None) -> nn.Module:
    """`module` at the bits that `header_of` noted.

    Raises:
        ValueError: a header that it did not write, or not for that module.
    """
    if header is None:
        return module
    bits, quantization = _read(header)
    module, by_name = at_bits(module, lambda name: bits.get(name, Bits()), quantization)
    if unknown := sorted(bits.keys() - {name for name, of in by_name.items() if of != Bits()}):
        raise ValueError(f"it has bits for `{unknown[0]}`, which is no weight of the module")
    return module


def _read(header: str) -> tuple[dict[str, Bits], Quantization]:
    try:
        data = json.loads(header)
        if data["version"] != 1 or isinstance(data["version"], bool):
            raise ValueError(f"its version is {data['version']!r}")
        bits = {str(name): Bits(*of) for name, of in data["bits"].items()}
        if problems := [f"bits of `{n}` {problem}" for n, of in bits.items() if (problem := of.misfit())]:
            raise ValueError(problems[0])
        if not isinstance(data["nested"], bool):
            raise ValueError(f"`nested` is {data['nested']!r}")
        return bits, Quantization(data["activations"], data["images"], data["nested"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header must be as `nas export` writes it ({error!r})") from error


def _packed(name: str, value: Tensor, how: Rounding | None) -> dict[str, Tensor]:
    if how is None:
        return {name: value.contiguous()}
    if how.bits == 16:
        return {name: value.half().contiguous()}
    integers = how.integers(name, value)
    return {name: integers.packed(), f"{name}{SCALES}": integers.scales.contiguous()}


def _unpacked(name: str, tensors: Mapping[str, Tensor], own: Tensor, how: Rounding | None) -> Tensor:
    """What the module's `own` tensor gets."""
    value, shape = tensors[name], tuple(own.shape)
    if how is None or how.bits == 16:
        dtype = own.dtype if how is None else torch.float16
        if value.shape != shape or value.dtype != dtype:
            raise ValueError(
                f"`{name}` has shape {tuple(value.shape)} of {value.dtype}, the module's {shape} of {dtype}"
            )
        return value
    scales, wanted = tensors[f"{name}{SCALES}"], Integers.scales_shape(shape, how.bits, how.nested)
    if value.dtype != torch.uint8 or scales.dtype != torch.float32 or scales.shape != wanted:
        raise ValueError(f"`{name}` is not packed as {how.bits} bits of shape {shape}")
    if not (scales.isfinite() & (scales > 0)).all():
        raise ValueError(f"`{name}{SCALES}` holds numbers that are no scales")
    return Integers.unpacked(value, scales, shape, how.bits).weight()
