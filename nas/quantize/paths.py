"""Which bits a parameter has, and the inputs of the layer that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nas.errors import SpaceError
from nas.layers.choice import ACTIVATION_BITS, BITS, Bits

FULL = Bits()
BitsOf = Callable[[Any, str], Any]
"""Of an architecture and the name of a parameter: `Bits`, or a number, which means that of the weights."""


def bits_by_path(architecture: Any, name: str) -> Any:
    """Bits of the parameter `name`: the `bits` of the innermost part of `architecture` on its path.

    Genes mirror parameter paths, so ``stages.1.blocks.3.mixer.q.weight`` follows
    ``architecture.stages[1].blocks[3].mixer.bits``. Only parameters called `weight` are quantized.
    """
    if not name.endswith(".weight"):
        return FULL
    value, bits = architecture, FULL
    for part in name.split("."):
        bits = getattr(value, "bits", bits)
        value = _step(value, part)
        if value is None:
            break
    return bits


def of_parameter(bits: BitsOf, architecture: Any, name: str) -> Bits:
    """What `bits` says of a parameter.

    Raises:
        SpaceError: it is neither bits nor a width that weights may have, or no kernel could compute it.
    """
    said = bits(architecture, name)
    if said.__class__ is not Bits:  # a number, or the user's own
        weight, activation = getattr(said, "weight", said), getattr(said, "activation", 32)
        if weight not in BITS or activation not in ACTIVATION_BITS:
            raise SpaceError(
                f"Bits of `{name}` must be {_or(BITS)} of weights and {_or(ACTIVATION_BITS)} of activations: "
                f"got {said!r}."
            )
        said = Bits(weight, activation)
    if problem := said.misfit():
        raise SpaceError(f"Bits of `{name}` {problem}")
    found: Bits = said
    return found


def _or(values: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, values[:-1]))} or {values[-1]}"


def _step(value: Any, part: str) -> Any:
    if isinstance(value, (tuple, list)):
        return value[int(part)] if part.isdigit() and int(part) < len(value) else None
    return getattr(value, part, None)
