"""Bit-widths: a function over weights, simulated in float, and the bytes it saves.

Symmetric integers; one scale per output channel at 8 bits, one per `GROUP` consecutive inputs of a
channel below. The order is cut, then scale, then round: a subnet is quantized as it would be if it had
been trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers.choice import BITS

GROUP = 32
SCALE_BYTES = 4

BitsOf = Callable[[Any, str], int]


def bits_by_path(architecture: Any, name: str) -> int:
    """Bits of the parameter `name`: the `bits.weight` of the innermost part of `architecture` on its path.

    Genes mirror parameter paths, so ``stages.1.blocks.3.mixer.q.weight`` follows
    ``architecture.stages[1].blocks[3].mixer.bits.weight``. Only parameters called `weight` are quantized.
    """
    value, bits = architecture, 32
    if not name.endswith(".weight"):
        return bits
    for part in name.split("."):
        bits = getattr(getattr(value, "bits", None), "weight", bits)
        value = _step(value, part)
        if value is None:
            break
    return int(bits)


def _step(value: Any, part: str) -> Any:
    if isinstance(value, (tuple, list)):
        return value[int(part)] if part.isdigit() and int(part) < len(value) else None
    return getattr(value, part, None)


def fake_quantize(weight: Tensor, bits: int) -> Tensor:
    """`weight` (out, …) rounded to `bits`, in its own dtype; gradients pass straight through.

    Raises:
        SpaceError: bits that are not among `BITS`.
    """
    if bits not in BITS:
        raise SpaceError(f"Weight bits must be one of {', '.join(map(str, BITS))}: got {bits}.")
    if bits == 32:
        return weight
    highest = 2 ** (bits - 1) - 1
    rows = weight.reshape(weight.shape[0], -1)  # (out, inputs)
    groups = rows[:, None] if bits > 4 else _grouped(rows)  # (out, groups, inputs of a group)
    scale = groups.detach().abs().amax(dim=-1, keepdim=True) / highest
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    rounded = _Round.apply(groups / scale) * scale
    return rounded.flatten(1)[:, : rows.shape[1]].reshape(weight.shape)


def payload_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Bytes of a tensor packed at `bits`, scales included."""
    out, inputs = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if bits == 32:
        return 4 * out * inputs
    scales = out if bits > 4 else out * math.ceil(inputs / GROUP)
    return math.ceil(out * inputs * bits / 8) + SCALE_BYTES * scales


def _grouped(rows: Tensor) -> Tensor:
    """(out, inputs) to (out, groups, GROUP), padded with zeros, which no scale notices."""
    padded = F.pad(rows, (0, -rows.shape[1] % GROUP))
    return padded.reshape(rows.shape[0], -1, GROUP)


class _Round(torch.autograd.Function):
    """Rounding with the gradient of the identity (straight-through, Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
