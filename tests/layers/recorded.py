"""What layers of public repositories answered; `golden/NAME.json` says how it was made."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from experiments.benchmarks.published_points import randomised


def recorded(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Weights under their published names, input and answer."""
    data = json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())
    weights = randomised({n: tuple(shape) for n, shape in data["shapes"].items()})
    return weights, torch.tensor(data["x"]), torch.tensor(data["y"])
