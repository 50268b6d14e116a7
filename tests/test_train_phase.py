"""What is refused before a supernet is trained."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nas.errors import RunError
from nas.layers import Bits
from nas.phases.train import require_parts
from nas.quantize import Quantization
from nas.space import Space, oneof
from nas.supernet import Supernet
from nas.tasks import Batch


@dataclass(frozen=True)
class Encoder:
    units: int
    first: bool  # whether the batch comes first


class Tokens(nn.Module):
    """(B, 4, 8) to (B, 3), by PyTorch's own layer, which takes time first unless it is told."""

    def __init__(self, architecture: Encoder) -> None:
        super().__init__()
        self.first = architecture.first
        self.layer = nn.TransformerEncoderLayer(8, 2, architecture.units, dropout=0.0, batch_first=self.first)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x if self.first else x.transpose(0, 1))
        return self.head(y.mean(1 if self.first else 0))


class Task:
    def batches(self, split):
        yield Batch((torch.rand(5, 4, 8, generator=torch.Generator().manual_seed(0)),), torch.zeros(5))


WHOLE = Bits(8, 8)


class Table(nn.Module):
    """Adds what a layer makes of a table of five rows, which are no inputs."""

    def __init__(self, architecture: Encoder) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
        self.linear, self.head = nn.Linear(8, architecture.units), nn.Linear(architecture.units, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.linear(x.mean(1)) + self.linear(self.table).sum(0))


def test_rows_that_are_no_inputs_are_found_by_the_batch_of_the_task():
    """Two inputs do not show it: five rows are no multiple of them."""
    dynamic = Quantization("dynamic", 1)
    with pytest.raises(RunError, match="answers 5 inputs otherwise than each 1 of them"):
        checked(True, dynamic, build=Table)


def checked(first: bool, quantization: Quantization, bits: Bits = WHOLE, build=Tokens) -> None:
    supernet = Supernet(
        build,
        Space(Encoder(oneof(8, 16), first)),
        bits=lambda architecture, name: bits if "linear" in name else Bits(),
        quantization=quantization,
    )
    require_parts(supernet, SimpleNamespace(quantization=quantization, task=Task()))


@pytest.mark.parametrize("images", [1, 2])
def test_dynamic_ranges_are_found_by_the_first_axis(images):
    dynamic = Quantization("dynamic", images)
    checked(True, dynamic)
    with pytest.raises(RunError, match=rf"answers {2 * images} inputs otherwise than each {images} of them"):
        checked(False, dynamic)
    checked(False, dynamic, Bits(8, 32))
    checked(False, Quantization("calibrated"))
