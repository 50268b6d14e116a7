"""Activations of 8 bits: what they are rounded to, simulated in float as the kernels of runtimes round.

Every quantizer maps (…, C) to the same, with gradients that pass straight through (Bengio et al., 2013).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 255
"""Steps of an asymmetric range: whole numbers from 0 to 255, of which one stands for 0."""
HALF = 127
"""Largest whole number of a symmetric one."""
GROUP = 32
"""Numbers of an input that share a scale, where weights have 4 bits or fewer."""


class QuantizedLinear(nn.Linear):
    """A linear layer whose inputs are rounded first. Its weights are rounded by whoever sets them."""

    def __init__(self, layer: nn.Linear, quantizer: nn.Module) -> None:
        nn.Module.__init__(self)  # the layer's own parameters, not new ones
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.quantizer = quantizer
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.quantizer(input), self.weight, self.bias)


class CalibratedRange(nn.Module):
    """One range for all that ever comes (static quantization; Jacob et al., 2018, §3).

    While it trains or is calibrated it takes the range of the call; calibration keeps the mean of these
    over calls. Without calibration it goes on to take that of the call.

    Attributes:
        low, high: the range, nan before calibration; 0 lies in it.
        calls: how many were averaged, while it is calibrated; else None.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("low", "high"):  # values of their own, also in a skeleton on the meta device
            self.register_buffer(name, torch.full((), torch.nan, device="cpu"))
        self.calls: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.calls is not None or not self.calibrated:
            low, high = range_of(x)
            if self.calls is not None:
                self._gather(low, high)
        else:
            low, high = self.low, self.high
        return rounded(x, *scale_and_zero(low, high))

    @property
    def calibrated(self) -> bool:
        return self.low.is_meta or not bool(self.low.isnan())

    def _gather(self, low: Tensor, high: Tensor) -> None:
        assert self.calls is not None
        for mean, value in ((self.low, low), (self.high, high)):
            mean.copy_(mean + (value - mean) / (self.calls + 1) if self.calls else value)
        self.calls += 1


class FixedRange(nn.Module):
    """A range that is calibrated and stays so.

    Raises:
        ValueError: it is not.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, calibrated: CalibratedRange) -> None:
        super().__init__()
        if not calibrated.calibrated:
            raise ValueError("a range was never calibrated: extract with `buffers=supernet.calibrate(…)`")
        scale, zero = scale_and_zero(calibrated.low, calibrated.high)
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero", zero.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return rounded(x, self.scale, self.zero)


class RangeOfCall(nn.Module):
    """The range of all that comes together."""

    def forward(self, x: Tensor) -> Tensor:
        return rounded(x, *scale_and_zero(*range_of(x)))


class Company:
    """How many inputs a call of the whole network has; `hook` it to that network."""

    def __init__(self) -> None:
        self.size = 1

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = [x for x in (*inputs, *named.values()) if isinstance(x, Tensor) and x.ndim]
        self.size = len(tensors[0]) if tensors else 1

    def hook(self, network: nn.Module) -> None:
        network.register_forward_pre_hook(self, with_kwargs=True)


class DynamicRange(nn.Module):
    """The range of what comes together, found when it comes (ONNX's DynamicQuantizeLinear).

    Args:
        images: inputs of the network that will come together; more of them are taken in such parts, so that
            a large batch answers as they will.
        company: how many come now.
    """

    def __init__(self, images: int, company: Company) -> None:
        super().__init__()
        self.images, self.company = images, company

    def forward(self, x: Tensor) -> Tensor:
        size = self.company.size
        if size <= self.images or x.shape[0] % size:
            return rounded(x, *scale_and_zero(*range_of(x)))
        whole = size - size % self.images
        rows = x.shape[0] // size  # windows, say, of one input
        parts = [x[: whole * rows], x[whole * rows :]]
        return torch.cat([self._in_parts(part, rows) for part in parts if len(part)])

    def _in_parts(self, x: Tensor, rows: int) -> Tensor:
        parts = x.reshape(-1, min(self.images * rows, len(x)), *x.shape[1:])
        flat = parts.detach().flatten(1)
        low, high = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0)
        shape = (-1, *(1,) * (parts.ndim - 1))
        scale, zero = scale_and_zero(low.view(shape), high.view(shape))
        return rounded(parts, scale, zero).reshape(x.shape)


class DynamicBlocks(nn.Module):
    """A scale for every `GROUP` numbers of each input, found when it comes (ONNX Runtime's MatMulNBits)."""

    def forward(self, x: Tensor) -> Tensor:
        blocks = F.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
        scale = blocks.detach().abs().amax(-1, keepdim=True) / HALF
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return rounded(blocks, scale, None).flatten(-2)[..., : x.shape[-1]]


def range_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest number, 0 among them."""
    low, high = torch.aminmax(x.detach())
    return low.clamp(max=0), high.clamp(min=0)


def scale_and_zero(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A step, and the whole number from 0 to `LEVELS` that stands for 0."""
    step = (high - low) / LEVELS
    step = torch.where(step > 0, step, torch.ones_like(step))
    return step, torch.round(-low / step).clamp(0, LEVELS)


def rounded(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """`x` at the nearest step of its range: from 0 to `LEVELS` around `zero`, or to ±`HALF` without one."""
    y: Tensor = _Rounded.apply(x, scale.to(x.dtype), None if zero is None else zero.to(x.dtype))
    return y


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        y = (x / scale).round_()
        y = y.clamp_(-HALF, HALF) if zero is None else y.add_(zero).clamp_(0, LEVELS).sub_(zero)
        return y.mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None
