"""Processes that train together, each on its share of every batch."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, distributed


class Group(Protocol):
    """What a training asks of its fellow processes."""

    rank: int
    size: int

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes."""

    def either(self, flags: list[bool]) -> list[bool]:
        """Which flags any process has set."""

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes; gradients reach it in each of them."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def add_up(self, tensors: list[Tensor]) -> None:
        return None

    def either(self, flags: list[bool]) -> list[bool]:
        return flags

    def total(self, tensor: Tensor) -> Tensor:
        return tensor


class Distributed:
    """The processes of `torch.distributed`, whose group is up: gloo on CPUs, NCCL on GPUs."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def add_up(self, tensors: list[Tensor]) -> None:
        """In one message, since those of small tensors cost more than what they carry."""
        flat = torch.cat([t.flatten() for t in tensors])
        distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def either(self, flags: list[bool]) -> list[bool]:
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        found = torch.tensor(flags, dtype=torch.uint8, device=device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def total(self, tensor: Tensor) -> Tensor:
        summed: Tensor = _Total.apply(tensor)
        return summed


class _Total(torch.autograd.Function):
    """Each process has a loss of its own: what its gradient is, all of them say together."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        distributed.all_reduce(total)
        return total
