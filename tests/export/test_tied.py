"""Weights that two layers share: what their bytes are said to be, and what a file may hold of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas.architecture import to_json
from nas.export import Check, Subnet, export_subnet
from nas.layers import Bits
from nas.space import Space
from nas.supernet import Supernet

WORDS, WIDTH = 50, 33  # no whole number of blocks
TOKENS = torch.randint(WORDS, (2, 6), generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    """An embedding whose weights the head takes, too."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.words(tokens)).mean(1)
        return logits


def build(architecture: int) -> nn.Module:
    return Tied()


@pytest.mark.parametrize("bits", [Bits(4), Bits(4, 8), Bits(8), Bits(8, 8)], ids=str)
def test_all_formats_are_written_and_tell_the_bytes(bits: Bits, tmp_path: Path) -> None:
    supernet = Supernet(build, Space(1), bits=lambda architecture, name: bits)
    module = supernet.extract(1, buffers=supernet.calibrate(1, [TOKENS]))
    found: list[Check] = []

    def cards(checks: list[Check]) -> dict[str, str]:
        found.extend(checks)
        return {}

    formats = ("safetensors", "onnx", "onnx-portable", "onnx-fp32", "onnx-fp16")
    export_subnet(Subnet(module, to_json(1), TOKENS), tmp_path / "abc", formats=formats, cards=cards)
    predicted = supernet.size_bytes(1)
    for one in found:
        wanted = {"onnx-fp32": 4 * WORDS * WIDTH, "onnx-fp16": 2 * WORDS * WIDTH}.get(one.format, predicted)
        assert one.predicted_bytes == wanted
        assert 0.98 * wanted <= one.weight_bytes <= 1.02 * wanted, one
