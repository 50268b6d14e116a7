"""Batch norms of several processes, which see one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nas.errors import RunError
from nas.training.group import Group


@contextmanager
def synchronised(group: Group, counts: bool) -> Iterator[None]:
    """Inside, `F.batch_norm` of training takes mean and variance over the inputs of all processes, and
    gradients go through both: two processes at half the batch are one (PyTorch's own SyncBatchNorm does not
    run on CPUs). Running statistics stay as they are.

    Args:
        counts: whether the inputs of this process are part of the batch.

    Raises:
        RunError: processes ran other norms: they must run the same ones, in the same order.
    """
    if group.size == 1:
        yield
        return
    with _OverAll(group, counts) as norms:
        yield
    if bool(norms.apart):
        raise RunError(
            "Batch norms must be the same ones in all processes, but these left out others than their "
            "fellows. Take another norm where layers are left out at random, or training.workers=1."
        )


class _OverAll(TorchFunctionMode):
    def __init__(self, group: Group, counts: bool) -> None:
        super().__init__()
        self.group, self.counts = group, counts
        self.apart: bool | Tensor = False  # whether processes met at one call with other norms

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(func, *args, **(kwargs or {}))
        if func is Tensor.backward:
            return self._backward(*args)
        return func(*args, **(kwargs or {}))

    def _backward(self, loss: Tensor) -> None:
        """As that of PyTorch, which is outside of all modes by itself: parts of a module may run again."""
        one = torch.ones_like(loss)
        with self:
            Variable._execution_engine.run_backward(
                (loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True
            )

    def _batch_norm(
        self,
        func: Callable[..., Tensor],
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """(B, C, …) to the same shape."""
        if not training:
            return func(x, running_mean, running_var, weight, bias, training, momentum, eps)
        axes, inputs = [axis for axis in range(x.ndim) if axis != 1], x.float()
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        own = inputs.new_zeros(())  # says which norm this is
        for parameter in (weight, bias):
            own = own if parameter is None else own + parameter.detach().float().sum()
        about = torch.stack([inputs.new_tensor(x.numel() / x.shape[1]), torch.ones_like(own), own])
        totals = self._total(torch.cat([inputs.sum(axes), about]))
        *_, number, processes, sums = totals.unbind()
        self.apart = self.apart | ((sums / processes - own).abs() > 1e-5 * (1 + own.abs()))
        centred = inputs - (totals[:-3] / number).view(shape)
        variance = self._total(centred.square().sum(axes)) / number  # not E[x²] − E[x]², which cancels
        scale = (variance + eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        normed = centred * scale.view(shape)
        return (normed if bias is None else normed + bias.view(shape)).to(x.dtype)

    def _total(self, sums: Tensor) -> Tensor:
        return self.group.total(sums * float(self.counts))
