"""Figures that a module gathers from data before it is used: batch-norm statistics, ranges of activations."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nas.layers.quantizers import CalibratedRange


def gathers(module: nn.Module) -> bool:
    """Whether there is anything to gather."""
    return any(isinstance(m, (nn.modules.batchnorm._BatchNorm, CalibratedRange)) for m in module.modules())


@contextmanager
def gathering(module: nn.Module) -> Iterator[None]:
    """`module` in evaluation mode, but that its norms and ranges gather: the mean over calls."""
    inner = list(module.modules())
    norms = [m for m in inner if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    ranges = [m for m in inner if isinstance(m, CalibratedRange)]
    kept = [norm.momentum for norm in norms]
    module.eval()  # dropout stays off
    try:
        for each in ranges:
            each.calls = 0
        for norm in norms:
            norm.train()
            norm.momentum = None  # the plain average over calls
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.eval()
            norm.momentum = momentum
        for each in ranges:
            each.calls = None


def with_ranges(module: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """`module` itself, or, where it has ranges that were never calibrated, a copy with those of `batches`.

    For timing: it does not depend on the numbers, but there must be some.
    """
    if all(m.calibrated for m in module.modules() if isinstance(m, CalibratedRange)):
        return module
    module = copy.deepcopy(module)
    with gathering(module), torch.no_grad():
        for batch in batches:
            module(batch)
    return module
