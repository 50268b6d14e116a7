"""Which bits a parameter has: those of the part of the architecture on its path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
