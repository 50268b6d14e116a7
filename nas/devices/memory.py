"""Memory that a forward pass asks for, from shapes alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas.devices.costs import FREE
from nas.devices.shapes import answer


def memory(module: nn.Module, *example: Tensor) -> tuple[int, int]:
    """Bytes of activations and peak bytes of one forward pass in evaluation mode, weights aside.

    Activations are the outputs of all kernels together: what training would have to keep. The peak is the
    largest sum of tensors that are needed at one time, inputs and outputs included, for a runtime that frees
    each tensor after its last use and computes nothing in place.

    Args:
        module: on any device, left as it is; traced once on the meta device.
        example: its inputs; their batch size and dtype are those of the figures.
    """
    module = copy.deepcopy(module).to("meta").eval()
    inputs = [x.to("meta") for x in example]
    with torch.no_grad(), _Lifetimes(inputs) as trace:
        outputs = module(*inputs)
    return trace.activations, trace.peak([x for x in tree_leaves(outputs) if isinstance(x, Tensor)])


class _Lifetimes(TorchDispatchMode):
    """Notes when each stretch of memory that depends on `inputs` is made and used last."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.activations = 0
        self._kept: list[
            Tensor
        ] = []  # so that no other storage comes to bear the address of one that is gone
        self._bytes: dict[int, int] = {}
        self._life: dict[int, tuple[int, int]] = {}
        self._step = 0
        for x in inputs:
            self._note(x)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = answer(func, args, kwargs or {})
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and _place(x) in self._bytes]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if read and made:
            self._step += 1
            for x in read:
                self._use(x)
            new = [x for x in made if _place(x) not in self._bytes]
            for x in new:
                self._note(x)
            if func.overloadpacket not in FREE:  # type: ignore[attr-defined]
                self.activations += sum(_size(x) for x in new)
        return out

    def peak(self, outputs: list[Tensor]) -> int:
        """Largest sum of what lives at one step; `outputs` live to the end."""
        for x in outputs:
            if _place(x) in self._bytes:
                self._use(x)
        live = [0] * (self._step + 2)
        for place, (first, last) in self._life.items():
            live[first] += self._bytes[place]
            live[last + 1] -= self._bytes[place]
        total = most = 0
        for change in live:
            total += change
            most = max(most, total)
        return most

    def _note(self, x: Tensor) -> None:
        self._kept.append(x)
        self._bytes[_place(x)] = _size(x)
        self._life[_place(x)] = (self._step, self._step)

    def _use(self, x: Tensor) -> None:
        first, _ = self._life[_place(x)]
        self._life[_place(x)] = (first, self._step)


def _place(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()
