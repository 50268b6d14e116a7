"""From the names of a published checkpoint to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nas.errors import DataError

OTHER = "Is it of another size or class count?"
DAMAGED = "Is it damaged, quantized, or of a training that diverged?"


@dataclass(frozen=True)
class Rename:
    """Tensors whose name matches `pattern` (whole) are called `to` here.

    Attributes:
        pattern: a regular expression; its groups are \\1, \\2 … in `to`.
        to: several names split the tensor into as many equal parts along its first axis (fused q, k, v);
            none drops it (what can be computed, such as an index).
        change: applied to the tensor first: another order of axes, say. May split it, into a tuple.
    """

    pattern: str
    to: str | tuple[str, ...] = ()
    change: Callable[[Tensor], Tensor | tuple[Tensor, ...]] = lambda tensor: tensor


def translated(state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """`state` under our names: `model.RENAMES`, of which the first that matches a name counts, and then
    `model.finish(state)`, where there is such, for what takes several tensors at once.

    Raises:
        DataError: a name that no rename knows, or a tensor that is not of its shape.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match, rename = _matching(name, model.RENAMES)
        targets = (rename.to,) if isinstance(rename.to, str) else rename.to
        if targets:
            parts = _parts(name, tensor, rename, len(targets))
            ours |= {match.expand(target): part for target, part in zip(targets, parts, strict=True)}
    if not hasattr(model, "finish"):
        return ours
    try:
        finished: dict[str, Tensor] = model.finish(ours)
    except (KeyError, RuntimeError) as error:
        raise DataError(
            f"A checkpoint must hold all tensors of its published model: got {error}. {OTHER}"
        ) from error
    return finished


def _parts(name: str, tensor: Tensor, rename: Rename, count: int) -> tuple[Tensor, ...]:
    try:
        changed = rename.change(tensor)
        if not isinstance(changed, Tensor):
            return changed
        return changed.tensor_split(count) if count > 1 else (changed,)
    except (RuntimeError, IndexError) as error:
        raise DataError(
            f"A tensor of a checkpoint must have its published shape: `{name}` has {tuple(tensor.shape)}, "
            f"which does not come apart ({error}). {OTHER}"
        ) from error


def _matching(name: str, renames: Sequence[Rename]) -> tuple[re.Match[str], Rename]:
    for rename in renames:
        if match := re.fullmatch(rename.pattern, name):
            return match, rename
    raise DataError(
        f"A checkpoint must hold tensors of its published model only: got `{name}`. Is it of another "
        f"model, or another library's form of it?"
    )


def load(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """`module` with the tensors of `state`, which must be all of its own and fit.

    Raises:
        DataError: missing, superfluous or misshapen tensors, or such as are no numbers of a trained model.
    """
    own: dict[str, Any] = dict(module.state_dict())
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = set(own) - set(state) - counters
    superfluous = set(state) - set(own)
    misshapen = [
        f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}"
        for n in sorted(set(own) & set(state))
        if _sides(own[n]) != _sides(state[n])
    ]
    if missing or superfluous or misshapen:
        raise DataError(
            f"A checkpoint must fit its model: missing {sorted(missing)[:3]}, superfluous "
            f"{sorted(superfluous)[:3]}, of another shape {misshapen[:3]}. {OTHER}"
        )
    for name, tensor in state.items():
        if own[name].is_floating_point() and not (tensor.is_floating_point() and tensor.isfinite().all()):
            kind = "NaN or infinity" if tensor.is_floating_point() else tensor.dtype
            raise DataError(f"A checkpoint must hold finite floats: `{name}` has {kind}. {DAMAGED}")
    module.load_state_dict({n: t.reshape(own[n].shape) for n, t in state.items()}, strict=False)
    return module


def _sides(tensor: Tensor) -> list[int]:
    """Its shape but for axes of length 1: a linear layer may be stored as a convolution of 1 × 1."""
    return [side for side in tensor.shape if side > 1]
