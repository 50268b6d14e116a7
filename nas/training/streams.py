"""Random numbers of a training step: a stream of its own for each purpose, so that none follows from another.

Architectures are drawn from (seed, step) itself, by the rules in `subnets.py`; `RULES` is for those of others
that draw from PyTorch's own numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

MIXING, SIDES, MODULES, RULES = 1, 2, 3, 4


def stream(purpose: int, seed: int, step: int, place: int = 0) -> np.random.Generator:
    """The same numbers for the same arguments.

    Args:
        place: of a batch among those of a step, or of a process among its fellows.
    """
    return np.random.default_rng(np.random.SeedSequence((seed, step, place), spawn_key=(purpose,)))


def torch_seed(purpose: int, seed: int, step: int, place: int = 0) -> int:
    """A seed for a generator of PyTorch."""
    return int(stream(purpose, seed, step, place).integers(1 << 62))


@contextmanager
def reproducible(purpose: int, seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random numbers, such as those of dropout, follow from purpose, seed and step."""
    devices, number = [device] if device.type == "cuda" else [], torch_seed(purpose, seed, step, rank)
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(number)  # of what is used alone: to ask all devices takes a while
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield
