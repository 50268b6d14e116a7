"""From the names of a published checkpoint to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nas.errors import DataError


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
        DataError: a name that no rename knows.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match, rename = _matching(name, model.RENAMES)
        targets = (rename.to,) if isinstance(rename.to, str) else rename.to
        if not targets:
            continue
        changed = rename.change(tensor)
        if isinstance(changed, Tensor):
            changed = (changed,) if len(targets) == 1 else changed.chunk(len(targets))
        for target, part in zip(targets, changed, strict=True):
            ours[match.expand(target)] = part
    return model.finish(ours) if hasattr(model, "finish") else ours


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
        DataError: missing, superfluous or misshapen tensors.
    """
    own: dict[str, Any] = dict(module.state_dict())
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = set(own) - set(state) - counters
    superfluous = set(state) - set(own)
    misshapen = {n for n in set(own) & set(state) if own[n].numel() != state[n].numel()}
    if missing or superfluous or misshapen:
        raise DataError(
            f"A checkpoint must fit its model: missing {sorted(missing)[:3]}, superfluous "
            f"{sorted(superfluous)[:3]}, of another shape {sorted(misshapen)[:3]}. Is it of another "
            f"size or class count?"
        )
    module.load_state_dict({n: t.reshape(own[n].shape) for n, t in state.items()}, strict=False)
    return module
