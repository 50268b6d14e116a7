"""How many CPU threads a computation gets. Sums come out the same only for the same number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_threads(n: int) -> Iterator[None]:
    """Runs the body with `n` PyTorch threads (0: as it is), and gives the old number back."""
    kept = torch.get_num_threads()
    if n:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(kept)
