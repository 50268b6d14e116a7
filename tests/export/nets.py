"""Small networks for export tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nas.export.onnx import onnx_session


def apart(path: Path, module: nn.Module, example: Tensor) -> float:
    """Largest difference between file and module in evaluation mode for one and for three random inputs like
    `example`, relative to the module's largest output."""
    mode, generator = module.training, torch.Generator().manual_seed(0)
    differences, largest = [], []
    for batch in (1, 3):
        x = torch.rand((batch, *example.shape[1:]), generator=generator).to(example.dtype)
        with torch.inference_mode():
            wanted = module.eval()(x).numpy()
        (got,) = onnx_session(path).run(["y"], {"x": x.numpy()})
        assert got.shape == wanted.shape
        differences.append(np.abs(got - wanted).max())
        largest.append(np.abs(wanted).max())
    module.train(mode)
    return float(max(differences) / max(largest))


class Windows(nn.Module):
    """Convolution, windows, attention with a bias table, batch norm: what subnets are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.q = nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(5))
        self.register_buffer("index", torch.arange(16).reshape(4, 4) % 5, persistent=False)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = self.norm(self.stem(x_BCHW)).permute(0, 2, 3, 1)
        batch, side = x_BHWC.shape[0], x_BHWC.shape[1] // 2
        q = self.q(x_BHWC).reshape(batch, side, 2, side, 2, 8).transpose(2, 3).reshape(-1, 4, 8)
        y = (q @ q.transpose(1, 2) + self.bias[self.index]).softmax(-1) @ q
        return self.head(self.drop(nn.functional.gelu(y)).reshape(batch, -1, 8).mean(1))


class Frozen(nn.Module):
    """Takes its batch size from a Python number, where one is given."""

    def __init__(self, batch: int | None) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self.batch or x.shape[0], -1)


class Averaging(nn.Module):
    """Divides by a batch size that tracing made a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / int(x.shape[0])


class Branching(nn.Module):
    """Branches on a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def trained() -> Windows:
    """With batch norm statistics that are not those it starts with; in training mode."""
    torch.manual_seed(0)
    net = Windows().train()
    with torch.no_grad():
        for _ in range(5):
            net(3 + 2 * torch.randn(16, 1, 4, 4))
    return net
